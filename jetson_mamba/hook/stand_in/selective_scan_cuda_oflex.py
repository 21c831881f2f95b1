"""VMamba's extension ``selective_scan_cuda_oflex``: the scan without z, its output in float32.

That is so where the caller's last argument says it; without it the output has the dtype of u.
"""

from typing import Any

from jetson_mamba.hook.stand_in import ungated

__all__ = ["bwd", "fwd"]


def fwd(*args: Any) -> Any:
    """``(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows, out_float)``; ``[out, x]``."""
    flexible = len(args) == 10
    given = args[:9] if flexible else args
    return ungated.fwd("selective_scan_cuda_oflex.fwd", given, flexible and bool(args[9]))


def bwd(*args: Any) -> Any:
    """``(u, ..., delta_bias, dout, x, delta_softplus, nrows)``; seven gradients."""
    return ungated.bwd("selective_scan_cuda_oflex.bwd", args)
