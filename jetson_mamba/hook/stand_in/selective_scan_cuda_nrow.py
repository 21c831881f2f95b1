"""VMamba's extension ``selective_scan_cuda_nrow``: the scan without z."""

from typing import Any

from jetson_mamba.hook.stand_in import ungated

__all__ = ["bwd", "fwd"]


def fwd(*args: Any) -> Any:
    """``(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)``; ``[out, x]``."""
    return ungated.fwd("selective_scan_cuda_nrow.fwd", args)


def bwd(*args: Any) -> Any:
    """``(u, ..., delta_bias, dout, x, delta_softplus, nrows)``; seven gradients."""
    return ungated.bwd("selective_scan_cuda_nrow.bwd", args)
