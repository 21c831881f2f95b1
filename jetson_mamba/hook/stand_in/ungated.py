"""The scan without z, as VMamba's extensions have it, by ``jetson_mamba.ops.selective_scan``.

Its package builds mamba-ssm's extension under names of its own: without z, with a number of rows
that a block of threads takes at once, which decides nothing here. Programs that call one as they
would call mamba-ssm's are understood by where their flag stands.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetson_mamba import ops


def fwd(function: str, args: tuple[Any, ...], out_float: bool = False) -> list[Tensor]:
    """``(u, delta, A, B, C, D, delta_bias, delta_softplus, nrows)``: ``[out, x]``.

    With ``out_float`` the output is float32 whatever the dtype of u. delta and delta_bias may have
    a divisor of u's channels: each is for a run of those.
    """
    if _as_mamba_ssm(args, 7, 9):
        return ops.selective_scan_fwd(*args)
    _count(function, args, (8, 9))
    u, delta, A, B, C, D, delta_bias, delta_softplus = args[:8]
    dtype = u.dtype
    if out_float and dtype in (torch.float16, torch.bfloat16):
        u = u.float()
    repeats = u.shape[1] // max(1, delta.shape[1])
    delta, delta_bias = _for_all(delta, u, repeats, 1), _for_all(delta_bias, u, repeats, 0)
    return ops.selective_scan_fwd(u, delta, A, B, C, D, None, delta_bias, delta_softplus)


def bwd(function: str, args: tuple[Any, ...]) -> list[Any]:
    """``(u, delta, A, B, C, D, delta_bias, dout, x, delta_softplus, nrows)``: the gradients.

    They are those of u, delta, A, B, C, D and delta_bias.
    """
    if _as_mamba_ssm(args, 9, 14):
        return ops.selective_scan_bwd(*args)
    _count(function, args, (10, 11))
    u, delta, A, B, C, D, delta_bias, dout, _, delta_softplus = args[:10]
    repeats = u.shape[1] // max(1, delta.shape[1])
    wide_delta, wide_bias = _for_all(delta, u, repeats, 1), _for_all(delta_bias, u, repeats, 0)
    # What was kept of the states may be that of a u in another dtype; it is computed again.
    given = (u, wide_delta, A, B, C, D, None, wide_bias, dout.to(u.dtype))
    found: list[Any] = ops.selective_scan_bwd(*given, None, None, None, delta_softplus, False)
    du, ddelta, *others, dbias = found[:7]
    if ddelta.shape != delta.shape:
        ddelta = torch.unflatten(ddelta, 1, (-1, repeats)).sum(2).to(delta.dtype)
    if dbias is not None and dbias.shape != delta_bias.shape:
        dbias = torch.unflatten(dbias, 0, (-1, repeats)).sum(1)
    return [du, ddelta, *others, dbias]


def _for_all(tensor: Any, u: Tensor, repeats: int, axis: int) -> Any:
    """A tensor of runs of channels, of each of those of u."""
    if tensor is None or tensor.shape[axis] == u.shape[1]:
        return tensor
    return tensor.repeat_interleave(repeats, axis)


def _as_mamba_ssm(args: tuple[Any, ...], flag: int, count: int) -> bool:
    """Whether a call has z, and so a tensor or None where the flag is without it."""
    return len(args) == count and not isinstance(args[flag], (bool, int))


def _count(function: str, args: tuple[Any, ...], counts: tuple[int, ...]) -> None:
    if len(args) not in counts:
        raise TypeError(
            f"{function}(): incompatible function arguments: expected "
            f"{' or '.join(map(str, counts))}, found {len(args)}"
        )
