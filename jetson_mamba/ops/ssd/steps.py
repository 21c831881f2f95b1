"""The steps that a scan takes, its sequences told apart, before any cut into chunks."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .contract import Scan

# The A that stands for an infinite one in float64.
LARGE = -1e200


def steps_taken(scan: Scan) -> Tensor:
    """The steps that are taken, after bias, softplus and limits; none in padding."""
    raw = _raw_steps(scan)
    steps = functional.softplus(raw) if scan.dt_softplus else raw
    if _limits(scan):
        steps = steps.clamp(*scan.dt_limit)
    return steps if scan.seq_idx is None else steps.masked_fill(_padding(scan.seq_idx), 0)


def slope(scan: Scan) -> Tensor:
    """The slope of :func:`steps_taken` in dt."""
    raw = _raw_steps(scan)
    slope = torch.sigmoid(raw) if scan.dt_softplus else torch.ones_like(raw)
    least, most = scan.dt_limit
    if _limits(scan):
        free = functional.softplus(raw) if scan.dt_softplus else raw
        slope = slope.masked_fill((free < least) | (free > most), 0)
    return slope if scan.seq_idx is None else slope.masked_fill(_padding(scan.seq_idx), 0)


def finite(A: Tensor) -> Tensor:
    """A, where it is infinite so large that any step decays a state to 0, and none leaves it.

    A difference of infinite sums would be no number. What is large in float64 leaves room for sums.
    """
    return A.clamp(min=LARGE if A.dtype == torch.float64 else torch.finfo(A.dtype).min)


def resets_before(seq_idx: Tensor) -> Tensor:
    """How often the sequence has changed up to each step; before the first it is sequence 0."""
    changed = seq_idx != functional.pad(seq_idx[:, :-1], (1, 0))
    return changed.cumsum(1, dtype=torch.int64)  # which ONNX asks for


def _limits(scan: Scan) -> bool:
    """Whether limits may change a step: those of a block that is told none do not."""
    least, most = scan.dt_limit
    return not (scan.dt_softplus and least <= 0 and most == math.inf)


def _raw_steps(scan: Scan) -> Tensor:
    raw = scan.dt.to(scan.dtype)
    return raw if scan.dt_bias is None else raw + scan.dt_bias


def _padding(seq_idx: Tensor) -> Tensor:
    return (seq_idx < 0).unsqueeze(-1)
