"""The settings outside a call that decide its numbers, such as those of ``torch.backends``.

What is remembered of one call may serve another only where all of them are the same: how products
are rounded, what must be deterministic, autocast, the backends that are named. Each torch has other
settings and other ways to ask for them, and some ways raise once another has been used
(``torch.get_float32_matmul_precision`` after ``torch.backends.cuda.matmul.fp32_precision = ...``).
So each is asked for by the function that the setting itself is made of, where there is that
function, and nothing raises.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Callable, Hashable

import torch

from . import backends
from .autocast import autocast_dtype

# Of torch._C, by the settings that they read.
_READ = (
    # products
    "_get_cublas_allow_fp16_reduced_precision_reduction",
    "_get_cublas_allow_bf16_reduced_precision_reduction",
    "_get_cublas_allow_fp16_accumulation",
    "_get_blas_preferred_backend",
    # determinism
    "_get_deterministic_algorithms",
    "_get_deterministic_algorithms_warn_only",
    "_get_deterministic_fill_uninitialized_memory",
    # convolutions
    "_get_cudnn_enabled",
    "_get_cudnn_deterministic",
    "_get_cudnn_benchmark",
    # what is kept, or looked at, on the way
    "is_autocast_cache_enabled",
    "is_anomaly_enabled",
    "is_anomaly_check_nan_enabled",
)
# Which have no say on a GPU.
_READ_ON_CPU = (
    "_get_cpu_allow_fp16_reduced_precision_reduction",
    "_get_mkldnn_enabled",
    "_get_mkldnn_deterministic",
    "_get_nnpack_enabled",
)
# Of torch 2.9 and later, which knows a precision of float32 for each of these.
_FP32_PRECISION = ("matmul", "conv", "rnn")
# Of earlier ones. Later ones have them too, made of the above, and they may raise.
_READ_BEFORE = (
    "_get_float32_matmul_precision",
    "_get_cublas_allow_tf32",
    "_get_cudnn_allow_tf32",
    "_get_onednn_allow_tf32",
)


def _readers(on_gpu: bool) -> list[Callable[[], Hashable]]:
    """A function for each setting that this torch has."""
    precision = getattr(torch._C, "_get_fp32_precision_getter", None)
    names = (*_READ, *(() if on_gpu else _READ_ON_CPU), *(() if precision else _READ_BEFORE))
    found: list[Callable[[], Hashable]] = [torch.get_default_dtype]
    found += (getattr(torch._C, name) for name in names if hasattr(torch._C, name))
    if precision is not None:
        for backend in ("cuda",) if on_gpu else ("cuda", "mkldnn"):
            found += (partial(precision, backend, of) for of in _FP32_PRECISION)
    try:  # the order of products
        einsum = vars(import_module("torch.backends.opt_einsum"))["m"]
        found += (einsum._get_enabled, einsum._get_strategy)
    except (ImportError, KeyError, AttributeError):
        pass
    return found


_settings = _readers(on_gpu=False)
_settings_of_gpus = _readers(on_gpu=True)
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack


def environment_key(device: torch.device) -> tuple[Hashable, ...]:
    """What decides how a call on ``device`` is computed, beside its arguments; never raises.

    Two calls of a process are computed alike only if this is equal. It takes some 2 us.
    """
    readers = _settings_of_gpus if device.type == "cuda" else _settings
    try:
        settings = [read() for read in readers]
    except Exception:
        settings = [_guarded(read) for read in readers]
    if _function_modes():
        settings.append(_guarded(_default_device))
    return (autocast_dtype(device), backends.named, *settings)


def _guarded(read: Callable[[], Hashable]) -> Hashable:
    try:
        return read()
    except Exception as error:
        return type(error).__name__


def _default_device() -> str | None:
    """Where tensors are made that name no device, as far as a mode says it."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._device import DeviceContext

    modes = [mode for mode in _get_current_function_mode_stack() if type(mode) is DeviceContext]
    return str(modes[-1].device) if modes else None
