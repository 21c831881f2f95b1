"""The interface of a backend of the gate: what it is given, what it writes.

xy and dxy are (rows, 2 * dim), out and dout (rows, dim), all of ``case.dtype`` on ``case.device``,
none empty; columns are contiguous, rows any number of elements apart.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """What decides which backend serves a call."""

    device: torch.device
    dtype: torch.dtype


class Implementation(NamedTuple):
    """The functions of a backend; neither records a graph."""

    # xy, out.
    forward: Callable[[Tensor, Tensor], None]
    # xy, dout, dxy, and where the output is written once more or None.
    backward: Callable[[Tensor, Tensor, Tensor, Tensor | None], None]
