"""The dtype of a computation, by its tensors or by autocast on any type of device.

Releases of torch before 2.4 know autocast for two of these.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, ContextManager

import torch
from torch import Tensor

# From torch 2.4 on it knows autocast by the type of a device.
_BY_TYPE = hasattr(torch, "get_autocast_dtype")
_OFF: ContextManager[Any] = nullcontext()


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The dtype of autocast on this device; None where it is off or there is none."""
    if _BY_TYPE:
        try:
            on = torch.is_autocast_enabled(device.type)
        except RuntimeError:  # such as meta, which autocast does not know
            return None
        return torch.get_autocast_dtype(device.type) if on else None
    if device.type == "cpu":
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def without_autocast(device: torch.device) -> ContextManager[Any]:
    """A context in which products keep their dtype: decays and states lose too much in 16 bits."""
    if autocast_dtype(device) is None:
        return _OFF
    return torch.autocast(device.type, enabled=False)


def without_cached_casts(device: torch.device) -> ContextManager[Any]:
    """A context in which autocast goes on, and keeps nothing of what it casts.

    What it keeps of a weight it frees at its end; a graph would go on reading it.
    """
    dtype = autocast_dtype(device)
    if dtype is None:
        return nullcontext()
    return torch.autocast(device.type, dtype, cache_enabled=False)


def compute_dtype(*tensors: Tensor | None) -> torch.dtype:
    """At least float32; float64 if any of the tensors is."""
    for tensor in tensors:
        if tensor is not None and tensor.dtype == torch.float64:
            return torch.float64
    return torch.float32
