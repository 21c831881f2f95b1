"""Calls that are launched again as they were: CUDA graphs of calls and blocks, Triton launches."""
