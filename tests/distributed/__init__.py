"""Training on several processes, each served by the startup file alone."""
