"""Results that are written into a given tensor, in a form that a graph can hold."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from .operators import is_compiling
from .tracing import is_traced


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, out: Tensor) -> Tensor:
    """``out = input + mat1 @ mat2``; ``out``, with any strides, may be ``input`` itself.

    Dynamo refuses ``torch.addmm(..., out=out)`` where ``out`` is not contiguous.
    """
    if is_compiling():
        return out.copy_(torch.addmm(input, mat1, mat2))
    return torch.addmm(input, mat1, mat2, out=out)


# Before torch 2.2 addcmul fails on a CPU where it is to write to a tensor of another dtype.
_CONVERTS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 2)


def addcmul(input: Tensor, tensor1: Tensor, tensor2: Tensor, *, out: Tensor | None) -> Tensor:
    """``out = input + tensor1 * tensor2``, where asked for into a tensor of any dtype."""
    if _CONVERTS or out is None or out.dtype == input.dtype or not out.is_cpu:
        return torch.addcmul(input, tensor1, tensor2, out=out)
    return out.copy_(torch.addcmul(input, tensor1, tensor2))


def write(target: Tensor, values: Tensor, rows: Tensor | None = None) -> None:
    """Write ``values`` to the rows of ``target``: without ``rows`` to all, in a trace to the first.

    A trace may be exported to ONNX: torch's exporter that is built on traces has no copy of a whole
    tensor, keeps what is assigned to a slice, and loses without a word what is written to a view.

    Raises RuntimeError for a view there.
    """
    if is_traced() and torch.onnx.is_in_onnx_export() and target._is_view():
        raise RuntimeError(
            f"a state of shape {tuple(target.shape)}: expected a tensor of its own, found a view, "
            "whose writes torch.onnx.export loses; give the exported model the state as an input, "
            "or export with dynamo=True"
        )
    if rows is not None:
        target.index_copy_(0, rows, values)
    elif is_traced():
        target[: values.shape[0]] = values
    else:
        target.copy_(values)


def _bump(tensor: Tensor) -> None:
    # No element, and a write all the same.
    tensor.detach()[:0].zero_()


# torch 2.2 counts without a launch.
_increment: Callable[[Any], Any] = getattr(torch.autograd.graph, "increment_version", _bump)


def version(tensor: Tensor | None) -> int | None:
    """How often a tensor has been written, to be told to :func:`count_write`; None: not counted."""
    return None if tensor is None or tensor.is_inference() else tensor._version


def count_write(tensor: Tensor | None, before: int | None) -> None:
    """Let a tensor's version be higher than it was ``before`` it was written.

    PyTorch's own operations count their writes, and kernels that are launched by address do not.
    Autograd finds by the count that a tensor which it saved has been changed since.
    """
    if tensor is not None and before is not None and tensor._version == before:
        _increment(tensor)
