"""Tests of what leaves Python. Forms, files, and programs that run them."""
