"""The interface of a backend of the norms: what it is given, what it gives back.

A norm is taken of the rows of x, or of ``x + residual``, each row or each run of ``group`` of its
columns by itself, and with z the result is gated. Statistics are in float32.

==========================================  ===============  ==========================
argument                                    shape            dtype
==========================================  ===============  ==========================
x, z, their gradients                       (rows, dim)      ``case.dtype``
weight, bias, their gradients               (dim,)           ``case.weight_dtype``
residual, its gradient                      (rows, dim)      float32, float16, bfloat16
source, total, dtotal                       (rows, dim)      float32, float16, bfloat16
out, dout                                   (rows, dim)      float32, float16, bfloat16
rstd                                        (groups, rows)   float32
==========================================  ===============  ==========================

All are on ``case.device``, none is empty, columns are contiguous; rows are any number of elements
apart, but a whole one where a backend makes the tensor.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Callable, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """What decides which backend serves a call."""

    device: torch.device
    dtype: torch.dtype
    weight_dtype: torch.dtype


class Gate(IntEnum):
    """What ``silu(z)`` multiplies."""

    NONE = 0
    OUTPUT = 1
    INPUT = 2


class Options(NamedTuple):
    """The norm: of the root mean square, else of the deviation from the mean."""

    eps: float
    group: int
    is_rms_norm: bool
    gate: Gate = Gate.NONE


class Normed(NamedTuple):
    """``total`` is the sum with the residual, where a dtype for it was named; else None, as is
    ``rstd``, one over the root mean squares, where it was not asked for."""

    out: Tensor
    total: Tensor | None
    rstd: Tensor | None


class Gradients(NamedTuple):
    """Of the arguments. That of a residual is ``x`` where both have one dtype."""

    x: Tensor
    residual: Tensor | None
    z: Tensor | None
    weight: Tensor
    bias: Tensor | None


class Implementation(NamedTuple):
    """The functions of a backend; neither records a graph."""

    # x, residual, z, weight, bias, dtype of the total or None, dtype of the output, options,
    # whether rstd is wanted.
    forward: Callable[
        [
            Tensor,
            Tensor | None,
            Tensor | None,
            Tensor,
            Tensor | None,
            torch.dtype | None,
            torch.dtype,
            Options,
            bool,
        ],
        Normed,
    ]
    # source (x, or the total where there is one), z, weight, bias, dout, dtotal, dtype of the
    # residual or None, options, where dz is written or None. dtotal has the dtype of source.
    backward: Callable[
        [
            Tensor,
            Tensor | None,
            Tensor,
            Tensor | None,
            Tensor,
            Tensor | None,
            torch.dtype | None,
            Options,
            Tensor | None,
        ],
        Gradients,
    ]
