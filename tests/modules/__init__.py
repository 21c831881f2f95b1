"""Adapters, hooks and the like on the modules that a fused function is given the weights of."""
