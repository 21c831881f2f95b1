"""Whatever decides the numbers of a call and is set elsewhere, in one place.

What was made of one call serves another only where all of this is as it was: how products are
rounded, what must be deterministic, autocast, the backends that are named. Each torch has other
settings and other ways to ask for them, and some ways raise once another has been used
(``torch.get_float32_matmul_precision`` after ``torch.backends.cuda.matmul.fp32_precision = ...``).
So each is asked for by the function that the setting itself is made of, where there is that
function, and nothing raises.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import Any, Callable, Hashable

import torch

from . import backends
from .autocast import autocast_dtype

# Of torch._C, by the settings that they read.
_READ = (
    # precision of products
    "_get_cublas_allow_tf32",
    "_get_cublas_allow_fp16_reduced_precision_reduction",
    "_get_cublas_allow_bf16_reduced_precision_reduction",
    "_get_cublas_allow_fp16_accumulation",
    "_get_cpu_allow_fp16_reduced_precision_reduction",
    "_get_blas_preferred_backend",
    "_get_linalg_preferred_backend",
    # determinism
    "_get_deterministic_algorithms",
    "_get_deterministic_algorithms_warn_only",
    "_get_deterministic_fill_uninitialized_memory",
    # libraries of convolutions
    "_get_cudnn_enabled",
    "_get_cudnn_allow_tf32",
    "_get_cudnn_deterministic",
    "_get_cudnn_benchmark",
    "_get_cudnn_benchmark_limit",
    "_get_mkldnn_enabled",
    "_get_mkldnn_deterministic",
    "_get_onednn_allow_tf32",
    "_get_nnpack_enabled",
    # what is looked at, or made, on the way
    "is_autocast_cache_enabled",
    "is_anomaly_enabled",
    "is_anomaly_check_nan_enabled",
)
_FP32_PRECISION = tuple(
    (backend, of) for backend in ("cuda", "mkldnn") for of in ("matmul", "conv", "rnn")
)
_UNREADABLE = "unreadable"


def _readers() -> list[Callable[[], Hashable]]:
    """A function for each setting that this torch has."""
    found: list[Callable[[], Hashable]] = [torch.get_default_dtype]
    found += (getattr(torch._C, name) for name in _READ if hasattr(torch._C, name))
    precision = getattr(torch._C, "_get_fp32_precision_getter", None)  # torch 2.9
    if precision is None:
        found.append(torch.get_float32_matmul_precision)
    else:
        found += (partial(precision, *each) for each in _FP32_PRECISION)
    try:
        einsum: Any = import_module("torch.backends.opt_einsum").__dict__["m"]
    except (ImportError, KeyError):  # it decides the order of products, from torch 1.13 on
        return found
    found += (getattr(einsum, name, _nothing) for name in ("_get_enabled", "_get_strategy"))
    return found


def _nothing() -> None:
    return None


def _guarded(read: Callable[[], Hashable]) -> Hashable:
    try:
        return read()
    except Exception:
        return _UNREADABLE


# Those that always answer, and those that a setting makes raise.
_reliable: list[Callable[[], Hashable]] = _readers()
_others: list[Callable[[], Hashable]] = []


def environment_key(device: torch.device) -> tuple[Hashable, ...]:
    """What decides how a call on ``device`` is computed, beside its arguments; never raises.

    Two calls of a process are computed alike only if this is equal. It takes some 2 us of a CPU.
    """
    while True:
        try:
            settings = [read() for read in _reliable]
            break
        except Exception:
            _set_apart()
    settings += map(_guarded, _others)
    if _function_modes():
        settings.append(_guarded(_default_device))
    return (autocast_dtype(device), backends.named, *settings)


_function_modes: Callable[[], int] = torch._C._len_torch_function_stack


def _set_apart() -> None:
    """Ask those functions with care from now on that have raised."""
    global _reliable, _others  # noqa: PLW0603 - new lists, which other threads may be reading
    raising = [read for read in _reliable if _guarded(read) is _UNREADABLE]
    _reliable = [read for read in _reliable if read not in raising]
    _others = [*_others, *raising]


def _default_device() -> str | None:
    """Where tensors are made that name no device, as far as a mode says it."""
    from torch.overrides import _get_current_function_mode_stack
    from torch.utils._device import DeviceContext

    modes = [mode for mode in _get_current_function_mode_stack() if type(mode) is DeviceContext]
    return str(modes[-1].device) if modes else None
