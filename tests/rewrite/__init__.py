"""What the rewriter makes of names, functions and texts that no release has."""
