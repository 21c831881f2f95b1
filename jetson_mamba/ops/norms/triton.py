"""The norms by upstream's Triton kernels where no gradient is recorded, past autograd functions.

Their launches are repeated where a call is like one before: see ``replay/launches.py``.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch.launchers import launchers_of
from jetson_mamba.replay.launches import Repeatable

# By the ops that stand in for the launcher, of the releases from 2.0 on and of 1.x.
NORMS = ("norm_forward", "norm_forward_of_1")
GATED_NORMS = ("gated_norm_forward",)
_repeatable: dict[Any, Repeatable] = {}


def norm(
    tensors: tuple[Tensor | None, ...], residual_dtype: torch.dtype | None, *options: Any
) -> tuple[Tensor, ...] | None:
    """Output, second output with weight1, and the sum where it is another tensor than x.

    ``tensors`` are x, weight, bias, residual, x1, weight1, bias1 and rowscale; ``options`` are eps
    and whether it is an RMSNorm. None where no upstream is there.
    """
    repeatable = _find(NORMS, _norm)
    return None if repeatable is None else repeatable(tensors, residual_dtype, *options)


def gated_norm(tensors: tuple[Tensor | None, ...], *options: Any) -> Tensor | None:
    """The output. ``tensors`` are x, weight, bias and z; ``options`` are eps, group_size, whether
    the norm is before the gate, and whether it is an RMSNorm. None where no upstream is there.
    """
    repeatable = _find(GATED_NORMS, _gated_norm)
    return None if repeatable is None else repeatable(tensors, *options)[0]


def _find(ops: tuple[str, ...], function: Callable[..., Any]) -> Repeatable | None:
    for op in ops:
        names = launchers_of(op)
        if names is not None:
            launcher = names["_layer_norm_fwd"]
            found = _repeatable.get(launcher)
            if found is None:
                found = _repeatable[launcher] = Repeatable(function, (launcher,))
            return found
    return None


def _rows(tensor: Tensor | None) -> Tensor | None:
    if tensor is None:
        return None
    tensor = tensor.reshape(-1, tensor.shape[-1])
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _norm(
    launchers: Any,
    tensors: Any,
    residual_dtype: torch.dtype | None,
    eps: float,
    is_rms_norm: bool,
) -> tuple[Tensor, ...]:
    x, weight, bias, residual, x1, weight1, bias1, rowscale = tensors
    others = {
        "x1": _rows(x1),
        "weight1": None if weight1 is None else weight1.contiguous(),
        "bias1": None if bias1 is None else bias1.contiguous(),
        "rowscale": None if rowscale is None else rowscale.reshape(-1).contiguous(),
    }
    rows: Any = _rows(x)
    y, *rest = launchers[0](
        rows,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        eps,
        _rows(residual),
        residual_dtype=residual_dtype,
        is_rms_norm=is_rms_norm,
        # 1.x has none of them.
        **{name: each for name, each in others.items() if each is not None},
    )
    # y, mean, rstd and the sum in 1.x; then a second y comes second, and masks at the end.
    y1, total = (None, rest[2]) if len(rest) == 3 else (rest[0], rest[3])
    found = (y, y1, None if total is rows else total)
    return tuple(each.reshape(x.shape) for each in found if each is not None)


def _gated_norm(
    launchers: Any,
    tensors: Any,
    eps: float,
    group_size: int | None,
    norm_before_gate: bool,
    is_rms_norm: bool,
) -> tuple[Tensor, ...]:
    x, weight, bias, z = tensors
    y, _, _ = launchers[0](
        _rows(x),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        eps,
        z=_rows(z),
        group_size=group_size,
        norm_before_gate=norm_before_gate,
        is_rms_norm=is_rms_norm,
    )
    return (y.reshape(x.shape),)
