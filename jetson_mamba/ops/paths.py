"""Which way a call goes: through upstream's autograd function, or past it.

The differentiable functions of the targets wrap a ``torch.autograd.Function``. Two kinds of calls
are better off without one:

* While ``torch.compile`` or ``torch.export`` traces, the function is a composition of tensor
  operations and of this package's operators, which a graph can hold.
* Where no gradient is recorded (``torch.no_grad``, ``torch.inference_mode``), the *inference
  path* does the work of the forward pass and nothing else. ``JETSON_MAMBA_INFERENCE=off``, read
  when this module is imported, or :func:`inference_path` switch it off.
"""

from __future__ import annotations

import os
import warnings
from contextlib import contextmanager
from typing import Iterator

import torch

from .operators import is_compiling

__all__ = ["inference_path", "is_compiling", "through_autograd", "without_gradients"]

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


def without_gradients() -> bool:
    """Whether a call is eager and takes the inference path."""
    return not is_compiling() and _inference and not torch.is_grad_enabled()


def through_autograd() -> bool:
    """Whether a call is to go through upstream's autograd function."""
    return not is_compiling() and (not _inference or torch.is_grad_enabled())
