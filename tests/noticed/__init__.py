"""Changes of one place in this package's own code, each of which a test is to notice."""
