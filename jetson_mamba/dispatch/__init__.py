"""Decides by which backend a call is computed: through kernels, operators or tensor operations."""
