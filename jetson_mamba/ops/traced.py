"""What ``torch.jit.trace`` must not see, and what it must: sizes that hold in a trace.

While it traces, the size of a tensor is a tensor itself. What is asked of it is recorded where it
is arithmetic and lost, with a warning, where it decides something. So sizes are read as plain
numbers here, which a trace holds as constants; and a trace that holds them has to refuse tensors of
other sizes, since the operations that follow would take some of them and compute something else.
"""

from __future__ import annotations

from typing import Any, Callable, TypeVar

import torch
from torch import Tensor

Result = TypeVar("Result")

_state: Callable[[], Any] = torch._C._get_tracing_state
_set_state: Callable[[Any], None] = torch._C._set_tracing_state


def untraced(function: Callable[..., Result], *arguments: Any) -> Result:
    """``function(*arguments)``, of which a trace records nothing."""
    state = _state()
    if state is None:
        return function(*arguments)
    _set_state(None)
    try:
        return function(*arguments)
    finally:
        _set_state(state)


def sizes(tensor: Tensor) -> tuple[int, ...]:
    """The shape of a tensor, as plain numbers also while it is traced."""
    return tuple(tensor.shape) if _state() is None else untraced(_sizes, tensor)


def _sizes(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def fixed(tensor: Tensor) -> Tensor:
    """The tensor; in a trace, one that fails where the tensor has another shape than now."""
    if _state() is None:
        return tensor
    for axis, size in enumerate(sizes(tensor)):
        # Of all operations that take sizes, splitting is the one that neither broadcasts nor
        # infers any.
        (tensor,) = torch.split(tensor, [size], dim=axis)
    return tensor
