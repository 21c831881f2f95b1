"""The two functions of mamba-ssm's compiled extension, by ``jetson_mamba.ops.selective_scan``.

It has had one signature in every release, which the op takes as it is.
"""

from typing import Any

from jetson_mamba import ops

__all__ = ["bwd", "fwd"]


def fwd(*args: Any) -> Any:
    """``(u, delta, A, B, C, D, z, delta_bias, delta_softplus)``; ``[out, x]``, with z ``out_z``."""
    return ops.selective_scan_fwd(*args)


def bwd(*args: Any) -> Any:
    """``(u, ..., delta_bias, dout, x, out, dz, delta_softplus, recompute_out_z)``; gradients."""
    return ops.selective_scan_bwd(*args)
