"""Tests of how the project is built: its rooms, and what a folder may hold."""
