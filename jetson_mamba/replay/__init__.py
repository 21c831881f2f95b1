"""Calls that are launched again as they were, by CUDA graphs or by launches of Triton."""
