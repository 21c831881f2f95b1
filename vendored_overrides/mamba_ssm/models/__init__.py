"""Mirrors the folder of the same name in mamba-ssm."""
