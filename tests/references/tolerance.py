"""How far a result is from its reference, in one number that does not depend on scale."""

from __future__ import annotations

import math

import torch
from torch import Tensor

# What a sound implementation keeps within: a few units in the last place of each dtype.
TOLERANCES = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 3e-3,
    torch.bfloat16: 2e-2,
}


def relative_norm(actual: Tensor, expected: Tensor) -> float:
    """``|actual - expected| / |expected|`` in float64; infinite for a NaN or another shape.

    Where the reference is zero, the norm of ``actual`` itself.
    """
    if actual.shape != expected.shape:
        return float("inf")
    wide = torch.complex128 if actual.is_complex() or expected.is_complex() else torch.float64
    actual, expected = actual.detach().to("cpu", wide), expected.detach().to("cpu", wide)
    difference = float((actual - expected).norm())
    scale = float(expected.norm())
    value = difference / scale if scale else difference
    return float("inf") if math.isnan(value) else value
