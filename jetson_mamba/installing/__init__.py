"""Installs mamba-ssm beside the torch that is there.

A board's torch comes from its vendor and cannot be had again from PyPI, so everything else is
chosen to go with it, and nothing that is installed is changed that can stay.
"""
