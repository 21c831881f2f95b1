"""Measurements whose figures stand in the documentation; each prints what it measures."""
