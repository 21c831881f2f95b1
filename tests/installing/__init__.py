"""What the installer chooses, from what it finds."""
