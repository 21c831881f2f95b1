"""What changes besides in every module that imports CuTe's Python, where that is not there whole.

Its parts are packages of their own; without one of them the others are of no use to the text.
"""

from __future__ import annotations

from jetson_mamba.rewrite import Placeholder

EDITS = tuple(
    Placeholder(of=package, becomes=f"jetson_mamba.compat.without_{package}")
    for package in ("cutlass", "quack", "cuda")
)
