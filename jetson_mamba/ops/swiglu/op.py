"""The gate of a gated MLP, ``silu(a) * b``, where upstream's Triton kernels cannot run.

The functions take the places of ``_swiglu_fwd`` and ``_swiglu_bwd`` in
``mamba_ssm.ops.triton.k_activations``, which its ``swiglu`` calls. They compute in at least float32
and round once. Nothing is written in place but what the caller names for it, so the gradient has a
gradient itself.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jetson_mamba.dispatch.tracing import sizes

from ..ssd import gates


def swiglu_forward(xy: Tensor, out: Tensor | None = None) -> Tensor:
    """``silu(a) * b`` for ``xy = [a, b]`` on the last axis, in the dtype of xy.

    xy is (..., 2 * dim); ``out`` (..., dim), of any dtype, receives the result where it is given,
    and is then what is returned.

    Raises ValueError for a last axis that is odd, and for an ``out`` that does not fit.
    """
    _check(xy, {"out": out})
    return _written(gates.swiglu(xy), out, xy.dtype)


def swiglu_backward(
    xy: Tensor,
    dout: Tensor,
    dxy: Tensor | None = None,
    recompute_output: bool = False,
    out: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The gradient of xy, in its dtype; with ``recompute_output`` also the output once more.

    ``dxy`` and ``out`` receive them where they are given, and are then what is returned. Raises
    ValueError for shapes that do not fit.
    """
    _check(xy, {"dout": dout, "out": out if recompute_output else None})
    if dxy is not None and sizes(dxy) != sizes(xy):
        raise ValueError(f"dxy: expected the shape of xy, {sizes(xy)}, found {sizes(dxy)}")
    gradient, output = gates.swiglu_backward(xy, dout)
    gradient = _written(gradient, dxy, xy.dtype)
    return (gradient, _written(output, out, xy.dtype)) if recompute_output else gradient


def _written(result: Tensor, target: Tensor | None, dtype: torch.dtype) -> Tensor:
    return result.to(dtype) if target is None else target.copy_(result)


def _check(xy: Tensor, halves: dict[str, Tensor | None]) -> None:
    shape = sizes(xy)
    if not shape or shape[-1] % 2:
        raise ValueError(f"xy: expected two halves on its last axis, found shape {shape}")
    expected = (*shape[:-1], shape[-1] // 2)
    for name, tensor in halves.items():
        if tensor is not None and sizes(tensor) != expected:
            raise ValueError(f"{name}: expected half of xy, {expected}, found {sizes(tensor)}")
