"""Which releases of other packages go together, as facts with their sources."""
