"""Upstream's own tests, run against the hook.

Those of mamba-ssm and of causal-conv1d, the latter against the stand-in.
"""
