"""Which way a call goes: to kernels, through operators of torch, or as plain tensor operations.

Kernels are fast and opaque: they take addresses and give numbers. That serves a call unless
something around it looks at tensors otherwise than by their numbers:

* What records a graph by itself, as ``torch.compile``, ``torch.export``, fake and meta tensors and
  dispatch modes do, is shown *operators* of ``torch.library``, which it can hold, count and ask for
  shapes.
* What transforms each operation (``torch.func``, forward-mode derivatives, subclasses of tensors)
  or knows none but torch's own (``torch.jit.trace`` and the exporter built on it) is given the
  *composed* form, plain tensor operations.

Upstream's functions wrap a ``torch.autograd.Function``. The ways by operators and by the composed
form do not enter it, nor does a call that records no gradient: that one takes the *inference path*,
which does the work of the forward pass and nothing else. ``JETSON_MAMBA_INFERENCE=off``, read when
this module is imported, or :func:`inference_path` switch that off.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from enum import Enum
from functools import partial
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

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


# A member is found by a function of enum's in Python 3.8 to 3.11, which costs as much as a look at
# all the tensors of a call. As an attribute of the class it is read like any other.
for _member in Way:
    type.__setattr__(Way, _member.name, _member)
_KERNELS, _OPERATORS, _COMPOSED = Way.KERNELS, Way.OPERATORS, Way.COMPOSED
# Shown to what records: with a torch that has no operators, plain operations are.
_RECORDED = _OPERATORS if has_operators else _COMPOSED
_PLAIN = frozenset((Tensor, Parameter, type(None)))
# What ``is_compiling`` asks: a function that the compiler answers itself, and a flag.
_is_dynamo_tracing: Callable[[], bool] = is_compiling
_compiler: Any = SimpleNamespace(_is_compiling_flag=False)
if has_operators and hasattr(torch.compiler, "_is_compiling_flag"):
    _is_dynamo_tracing, _compiler = torch.compiler.is_dynamo_compiling, torch.compiler


def _none(*_: Any) -> Any:
    return None


_transform: Callable[[], Any] = getattr(
    getattr(torch._C, "_functorch", None), "peek_interpreter_stack", _none
)
_is_traced: Callable[[], bool] = torch._C._is_tracing
_dispatch_modes: Callable[[], int] = torch._C._len_torch_dispatch_stack
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack


def _has_batched_key(tensor: Tensor) -> bool:
    keys: Any = torch._C
    # By its name: the enumeration of torch 2.2 has no attribute for it. So that finds it in 2.2,
    # and what went before in 2.0 and 2.1.
    parse = getattr(keys, "_parse_dispatch_key", None) or keys._dispatch_key_parse
    return bool(keys._dispatch_keys(tensor).has(parse("Batched")))


_is_batched: Callable[[Tensor], bool] = getattr(
    getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", _has_batched_key
)


def _finds_batches() -> Callable[[], bool]:
    """A function that says whether there may be such a batch: one call, whatever the tensors."""
    keys: Any = torch._C
    parse = getattr(keys, "_parse_dispatch_key", None)
    is_included = getattr(keys, "_dispatch_tls_is_dispatch_key_included", None)
    if parse is None or is_included is None:
        return lambda: True
    try:
        found: Callable[[], bool] = partial(is_included, parse("VmapMode"))
        found()
    except (RuntimeError, TypeError):
        return lambda: True
    return found


_may_be_batched = _finds_batches()


def is_batched(*tensors: Any) -> bool:
    """Whether one of these is a batch that ``torch.autograd`` hides from what it calls.

    With ``is_grads_batched`` it runs a backward pass once for many gradients, of which each
    operation sees one. That is none of ``torch.func``'s transforms, and is known by its tensors
    alone.
    """
    for tensor in tensors:  # noqa: SIM110 - takes half the time
        if isinstance(tensor, Tensor) and _is_batched(tensor):
            return True
    return False


def is_transformed() -> bool:
    """Whether a transform of ``torch.func`` is at work."""
    return _transform() is not None


def way(*tensors: Tensor | None) -> Way:
    """The way of a call with these tensors, as it stands now."""
    if _is_dynamo_tracing() or _compiler._is_compiling_flag:
        return _OPERATORS
    if _is_traced() or _transform() is not None or forward_ad._current_level >= 0:
        return _COMPOSED
    if _dispatch_modes():
        return _RECORDED
    for tensor in tensors:
        kind = type(tensor)
        if kind is not Tensor and kind is not Parameter and tensor is not None:
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
    if found is _KERNELS and _may_be_batched():
        for tensor in tensors:
            if tensor is not None and _is_batched(tensor):
                return _COMPOSED
    return found


def _way_of_subclasses(tensors: tuple[Any, ...]) -> Way:
    """Of tensors that are not all plain: fake ones are recorded, others are asked of each step."""
    from torch._subclasses.fake_tensor import FakeTensor

    kinds = {type(tensor) for tensor in tensors} - _PLAIN
    return _RECORDED if all(issubclass(kind, FakeTensor) for kind in kinds) else _COMPOSED


def may_replay() -> bool:
    """Whether a call may be launched again as it was, past all Python: nothing listens to it.

    The inference path is not switched off either, with which all of that is.
    """
    if not _inference:
        return False
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
    return (not _inference or torch.is_grad_enabled()) and way(*tensors) is _KERNELS
