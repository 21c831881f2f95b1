"""Sizes in a trace of ``torch.jit``: what is made for some sizes must not run at others.

A trace is a list of operations with the numbers that they had. Where those came of a size, another
size gives other results than the function would, without a word. So each tensor that a composed
form is given is *fixed*: an operation stands in the trace that refuses other sizes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import Any, Iterator, TypeVar

import torch
from torch import Tensor

_Maybe = TypeVar("_Maybe", Tensor, "Tensor | None")


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
    if torch._C._get_tracing_state() is None:
        return tuple(tensor.shape)
    with untraced():
        return tuple(tensor.shape)


def fixed(tensor: _Maybe) -> _Maybe:
    """``tensor``; a trace then raises a RuntimeError where it is of other sizes."""
    if tensor is None or torch._C._get_tracing_state() is None:
        return tensor
    for axis, size in enumerate(sizes(tensor)):
        (tensor,) = tensor.split_with_sizes([size], axis)
    return tensor
