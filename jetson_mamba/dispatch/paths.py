"""Which way a call goes: to kernels, through operators of torch, or as plain tensor operations.

Kernels are fast and opaque: they take addresses and give numbers. That serves a call unless
something around it looks at tensors otherwise than by their numbers:

* What records a graph by itself, as ``torch.compile``, ``torch.export``, fake and meta tensors and
  dispatch modes do, is shown *operators* of ``torch.library``, which it can hold, count and ask for
  shapes.
* What transforms each operation (``torch.func``, forward-mode derivatives, subclasses of tensors)
  or knows none but torch's own (``torch.jit.trace`` and the exporter built on it) is given the
  *composed* form, plain tensor operations.

Upstream's functions wrap a ``torch.autograd.Function``. They are gone past on those two ways, and
where no gradient is recorded: then the *inference path* does the work of the forward pass and
nothing else. ``JETSON_MAMBA_INFERENCE=off``, read when this module is imported, or
:func:`inference_path` switch that off.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from enum import Enum
from typing import Any, Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .operators import has_operators, is_compiling

__all__ = [
    "Way",
    "inference_path",
    "is_batched",
    "is_compiling",
    "is_transformed",
    "may_replay",
    "through_autograd",
    "way",
    "way_back",
    "without_gradients",
]


class Way(Enum):
    """What computes a call."""

    KERNELS = "kernels"
    OPERATORS = "operators"
    COMPOSED = "composed"


# A member that is read of its class costs as much as the rest of a look.
_KERNELS, _OPERATORS, _COMPOSED = Way.KERNELS, Way.OPERATORS, Way.COMPOSED
# Shown to what records: with a torch that has no operators, plain operations are.
_RECORDED = _OPERATORS if has_operators else _COMPOSED
_PLAIN = frozenset((Tensor, torch.nn.Parameter, type(None)))


def _none(*_: Any) -> Any:
    return None


_transform: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", _none
)
_traced: Callable[[], Any] = torch._C._get_tracing_state
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack


def _has_batched_key(tensor: Tensor) -> bool:
    keys: Any = torch._C
    # By its name: the enumeration of torch 2.2 has no attribute for it.
    return bool(keys._dispatch_keys(tensor).has(keys._parse_dispatch_key("Batched")))


_is_batched: Callable[[Tensor], bool] = getattr(
    getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", _has_batched_key
)


def is_batched(*tensors: Any) -> bool:
    """Whether one of these is a batch that ``torch.autograd`` hides from what it calls.

    With ``is_grads_batched`` it runs a backward pass once for many gradients, of which each
    operation sees one. That is none of ``torch.func``'s transforms, and is known by its tensors
    alone.
    """
    return any(isinstance(tensor, Tensor) and _is_batched(tensor) for tensor in tensors)


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return _transform() is not None


def way(*tensors: Tensor | None) -> Way:
    """The way of a call with these tensors, as it stands now."""
    if is_compiling():
        return _OPERATORS
    if _traced() is not None or _transform() is not None or forward_ad._current_level >= 0:
        return _COMPOSED
    if _dispatch_modes():
        return _RECORDED
    if not _PLAIN.issuperset(map(type, tensors)):
        return _way_of_subclasses(tensors)
    # All of a call are on the device of the first, or it is refused.
    if tensors and tensors[0] is not None and tensors[0].is_meta:
        return _RECORDED
    return _KERNELS


def way_back(*tensors: Tensor | None) -> Way:
    """The way of a backward pass with these tensors: as :func:`way`, and composed for a batch.

    What such a pass is called within is not what its forward pass was. Where it is recorded itself
    (``torch.is_grad_enabled()``) kernels do not serve either, if it belongs to an autograd function
    of this package.
    """
    found = way(*tensors)
    return _COMPOSED if found is _KERNELS and is_batched(*tensors) else found


def _way_of_subclasses(tensors: tuple[Any, ...]) -> Way:
    """Of tensors that are not all plain: fake ones are recorded, others are asked of each step."""
    from torch._subclasses.fake_tensor import FakeTensor

    kinds = {type(tensor) for tensor in tensors} - _PLAIN
    return _RECORDED if all(issubclass(kind, FakeTensor) for kind in kinds) else _COMPOSED


def may_replay() -> bool:
    """Whether a call may be launched again as it was, past all Python: nothing listens to it."""
    if not _function_modes():
        return True
    # A default device is such a mode, and has no say in what is computed of given tensors.
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._device import DeviceContext

    return all(type(mode) is DeviceContext for mode in _get_current_function_mode_stack())


_value = os.environ.get("JETSON_MAMBA_INFERENCE") or "on"
if _value not in ("on", "off"):
    warnings.warn(
        f"JETSON_MAMBA_INFERENCE: expected on or off, found {_value!r}; taken as on",
        RuntimeWarning,
        stacklevel=2,
    )
_inference = _value != "off"


@contextmanager
def inference_path(enabled: bool) -> Iterator[None]:
    """Whether calls without gradients take the inference path inside the ``with`` block.

    This holds for the whole process, and what it was before is put back at the end.
    """
    global _inference  # noqa: PLW0603 - a setting of the process, read on every call
    before = _inference
    _inference = enabled
    try:
        yield
    finally:
        _inference = before


def without_gradients(*tensors: Tensor | None) -> bool:
    """Whether a call takes the inference path, on kernels."""
    return _inference and not torch.is_grad_enabled() and way(*tensors) is _KERNELS


def through_autograd(*tensors: Tensor | None) -> bool:
    """Whether a call is to go through upstream's autograd function."""
    return way(*tensors) is _KERNELS and (not _inference or torch.is_grad_enabled())
