"""Whether upstream's Triton kernels can run on a device, found out once for each device."""

from __future__ import annotations

import os
from functools import lru_cache

import torch

# Triton generates code for NVIDIA GPUs from this compute capability on.
LEAST_CAPABILITY = (7, 0)


@lru_cache(maxsize=None)
def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton kernels can run on tensors of ``device``.

    They run on a CUDA device of compute capability 7.0 or more (any ROCm device), and under
    Triton's interpreter on every device. The answer is kept: kernels are bound to the compiler
    or to the interpreter when their module is imported, so asking again would mislead.
    """
    try:
        import triton
    except Exception:  # a Triton that cannot be imported, for whatever reason, runs nothing
        return False
    if hasattr(triton, "knobs"):  # Triton 3.4 and later
        interpreted = bool(triton.knobs.runtime.interpret)
    else:
        interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"
    if interpreted:
        return True
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    if torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY
