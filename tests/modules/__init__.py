"""Things put on the modules whose weights a fused function is given.

Adapters, hooks and the like.
"""
