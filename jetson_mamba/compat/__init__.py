"""Stand-ins for names of other libraries that are gone, or imported when they are used."""
