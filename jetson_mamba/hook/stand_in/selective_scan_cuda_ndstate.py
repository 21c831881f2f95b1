"""VMamba's extension ``selective_scan_cuda_ndstate``: the scan with one state for each channel.

Its A is (dim,), its B and C are (batch, groups, seqlen).
"""

from typing import Any

from jetson_mamba.hook.stand_in import ungated

__all__ = ["bwd", "fwd"]


def fwd(*args: Any) -> Any:
    """``(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)``; ``[out, x]``."""
    return ungated.fwd("selective_scan_cuda_ndstate.fwd", _with_states(args))


def bwd(*args: Any) -> Any:
    """``(u, ..., delta_bias, dout, x, delta_softplus, nrows)``; seven gradients."""
    found = ungated.bwd("selective_scan_cuda_ndstate.bwd", _with_states(args))
    if args[2].dim() == 1:
        for place, axis in ((2, 1), (3, 2), (4, 2)):
            found[place] = found[place].squeeze(axis)
    return found


def _with_states(args: "tuple[Any, ...]") -> "tuple[Any, ...]":
    u, delta, A, B, C, *rest = args
    if A.dim() == 1:
        A, B, C = A.unsqueeze(1), B.unsqueeze(2), C.unsqueeze(2)
    return (u, delta, A, B, C, *rest)
