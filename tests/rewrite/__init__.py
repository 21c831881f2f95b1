"""Tests of what the rewriter makes of texts that no release has.

Of their names and functions too.
"""
