"""Sizes in a trace of ``torch.jit``: it is right at other sizes than its own, or refuses them.

A trace is a list of operations with the numbers that they had. Where those came of a size, another
size gives other results than the function would, without a word. So a composed form takes the sizes
that it builds with from the shapes of tensors, which a trace follows, and decides by plain numbers
(:func:`sizes`) only what holds at every size. What cannot be built for every size is *fixed*: an
operation stands in the trace that refuses others. So does one for each tensor that has to be
*beside* another: what a trace took for a constant keeps its size, and may not be broadcast.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Iterator, TypeVar

import torch
from torch import Tensor

tracing_state: Any = torch._C._get_tracing_state
_Maybe = TypeVar("_Maybe", Tensor, "Tensor | None")


def is_traced() -> bool:
    """Whether a trace is taken, which may run at other sizes later."""
    return torch._C._get_tracing_state() is not None


@contextmanager
def untraced() -> Iterator[None]:
    """A context whose operations do not stand in a trace, and where sizes are plain numbers."""
    state = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    trace: Any = torch._C
    trace._set_tracing_state(None)
    try:
        yield
    finally:
        trace._set_tracing_state(state)


def sizes(tensor: Tensor) -> tuple[int, ...]:
    """The shape in plain numbers, also where a trace would follow them."""
    if tracing_state() is None:  # is_traced, without a call
        return tuple(tensor.shape)
    with untraced():
        return tuple(tensor.shape)


def unflatten(tensor: Tensor, axis: int, parts: tuple[int, ...]) -> Tensor:
    """``torch.unflatten``, by whose rule in ONNX other axes would keep the sizes of the trace."""
    if tracing_state() is None:
        return torch.unflatten(tensor, axis, parts)
    axis %= tensor.dim()
    return tensor.reshape(*tensor.shape[:axis], *parts, *tensor.shape[axis + 1 :])


def missing(size: int, multiple: int) -> int:
    """What a size lacks to be a multiple; ONNX divides towards 0, so nothing here is negative."""
    return (size + multiple - 1) // multiple * multiple - size


def fixed(tensor: _Maybe, axis: int) -> _Maybe:
    """``tensor``; a trace then raises a RuntimeError where that axis is of another size.

    Where no error can stand, as in ONNX, a split into one part refuses it too.
    """
    if tensor is None or not is_traced():
        return tensor
    size = sizes(tensor)[axis]
    refuse = None if torch.onnx.is_in_onnx_export() else _compiled()
    if refuse is None:
        (tensor,) = tensor.split_with_sizes([size], axis)
        return tensor
    checked: Tensor = refuse[0](tensor, axis, size)
    return checked


def beside(name: str, tensor: _Maybe, other: Tensor, *axes: tuple[int, int]) -> _Maybe:
    """``tensor``; a trace then raises a RuntimeError where a pair of axes of both differs in size.

    A call in Python has been checked for that; a trace leaves such checks out.
    """
    if tensor is None or not is_traced() or torch.onnx.is_in_onnx_export():
        return tensor
    refuse = _compiled()
    if refuse is None:
        return tensor
    checked: Tensor = tensor
    for axis, other_axis in axes:
        checked = refuse[1](name, checked, axis, other, other_axis)
    return checked


def _of_size(tensor: Tensor, axis: int, size: int) -> Tensor:
    if tensor.size(axis) != size:
        raise RuntimeError(
            f"jetson_mamba: a tensor of shape {tensor.size()} in a trace: expected {size} on axis "
            f"{axis}, as where it was taken; take another trace for other sizes"
        )
    return tensor


def _of_one_size(name: str, tensor: Tensor, axis: int, other: Tensor, other_axis: int) -> Tensor:
    if tensor.size(axis) != other.size(other_axis):
        raise RuntimeError(
            f"jetson_mamba: {name} of shape {tensor.size()} in a trace: expected "
            f"{other.size(other_axis)} on axis {axis}, as in an input of shape {other.size()}; "
            f"make {name} an input of the trace, or take another trace for other sizes"
        )
    return tensor


@lru_cache(maxsize=None)
def _compiled() -> Any:
    """Both functions with their errors, which a trace of what Python does would leave out.

    None where there is no source of it to compile.
    """
    with untraced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is old, as who takes a trace has been told.
        try:
            return torch.jit.script(_of_size), torch.jit.script(_of_one_size)
        except OSError:
            return None
