"""What is run at a release, and ships with none."""
