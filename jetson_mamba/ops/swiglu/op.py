"""The gate of a gated MLP, ``silu(a) * b``, where upstream's Triton kernels cannot run.

The functions take the places of ``_swiglu_fwd`` and ``_swiglu_bwd`` in
``mamba_ssm.ops.triton.k_activations``, which its ``swiglu`` calls. They compute in at least float32
and round once: on a GPU by this project's kernels, elsewhere, and where something traces,
transforms or differentiates, by plain tensor operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jetson_mamba.dispatch.arguments import check_alike
from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.paths import Way, way
from jetson_mamba.dispatch.tracing import sizes
from jetson_mamba.kernels.tensors import MAXIMUM_GRID, rows

from ..ssd import gates
from . import pytorch
from .contract import Case, Implementation

# Within which the results of a trial have to agree with PyTorch's, relative norms.
TRIAL_TOLERANCE = 5e-2
# Of both halves: what one block of the grid's second dimension after another reaches.
MOST_COLUMNS = 2 * 256 * MAXIMUM_GRID


def swiglu_forward(xy: Tensor, out: Tensor | None = None) -> Tensor:
    """``silu(a) * b`` for ``xy = [a, b]`` on the last axis, in the dtype of xy.

    xy is (..., 2 * dim); ``out`` (..., dim), of any dtype, receives the result where it is given,
    and is then what is returned.

    Raises ValueError for a last axis that is odd, and for an ``out`` that does not fit.
    """
    _check(xy, {"out": out})
    kernels = _kernels(xy)
    if kernels is None:
        return _written(gates.swiglu(xy), out, xy.dtype)
    room = _room(out, xy, xy.shape[-1] // 2)
    kernels.forward(_rows(xy), _rows(room))
    return _written(room, out, xy.dtype)


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
    check_alike("dxy", dxy, sizes(xy), "the shape of xy")
    kernels = _kernels(xy, dout)
    if kernels is None:
        gradient, output = gates.swiglu_backward(xy, dout)
    else:
        gradient, output = _room(dxy, xy, xy.shape[-1]), _room(out, xy, dout.shape[-1])
        kernels.backward(
            *(_rows(xy), _rows(dout), _rows(gradient)),
            _rows(output) if recompute_output else None,
        )
    gradient = _written(gradient, dxy, xy.dtype)
    return (gradient, _written(output, out, xy.dtype)) if recompute_output else gradient


def _kernels(*tensors: Tensor) -> Implementation | None:
    """The CUDA kernels, where they serve and nothing looks at the call but by its numbers."""
    xy = tensors[0]
    if not xy.is_cuda or way(*tensors) is not Way.KERNELS or not xy.numel():
        return None
    if torch.is_grad_enabled() and any(each.requires_grad for each in tensors):
        return None
    if any(each.dtype != xy.dtype for each in tensors) or xy.shape[-1] > MOST_COLUMNS:
        return None
    found = OP.implementation(Case(xy.device, xy.dtype))
    return None if found is pytorch.IMPLEMENTATION else found


def _rows(tensor: Tensor) -> Tensor:
    """(..., dim) as (rows, dim) with columns that are contiguous; a copy only where it must be."""
    return rows(tensor.reshape(-1, tensor.shape[-1]))


def _room(target: Tensor | None, xy: Tensor, columns: int) -> Tensor:
    """Where kernels write: the target, if they can."""
    if target is not None and target.dtype == xy.dtype and target.stride(-1) == 1:
        flat = target.reshape(-1, columns)
        if flat.data_ptr() == target.data_ptr():
            return target
    return torch.empty((*xy.shape[:-1], columns), dtype=xy.dtype, device=xy.device)


def _written(result: Tensor, target: Tensor | None, dtype: torch.dtype) -> Tensor:
    if target is None:
        return result.to(dtype)
    return target if result is target else target.copy_(result)


def _check(xy: Tensor, halves: dict[str, Tensor | None]) -> None:
    shape = sizes(xy)
    if not shape or shape[-1] % 2:
        raise ValueError(f"xy: expected two halves on its last axis, found shape {shape}")
    expected = (*shape[:-1], shape[-1] // 2)
    for name, tensor in halves.items():
        check_alike(name, tensor, expected, "half of xy")


@torch.no_grad()
def _trial(implementation: Implementation, case: Case) -> None:
    """Both passes, compared with PyTorch: `Op` says why."""
    if implementation is pytorch.IMPLEMENTATION:
        return
    numbers = torch.arange(96, device=case.device).mul(7).remainder(11).sub(5).div(4)
    xy, dout = numbers[:64].view(4, 16).to(case.dtype), numbers[64:].view(4, 8).to(case.dtype)
    results = []
    for each in (implementation, pytorch.IMPLEMENTATION):
        out, again, dxy = torch.empty_like(dout), torch.empty_like(dout), torch.empty_like(xy)
        each.forward(xy, out)
        each.backward(xy, dout, dxy, again)
        results.append((out, again, dxy))
    for name, actual, right in zip(("output", "output again", "gradient"), *results):
        difference = (actual.float() - right.float()).norm()
        # A comparison that a NaN fails.
        if not bool(difference <= TRIAL_TOLERANCE * right.float().norm()):
            raise RuntimeError(f"the {name} of a trial is wrong")


OP: Op[Case, Implementation] = Op("swiglu", str(__package__), ("cuda", "pytorch"), _trial)
