"""Tests of how the project is built. Its rooms, and what a folder may hold."""
