"""The gate in PyTorch, for every device."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ssd import gates
from .contract import Case, Implementation


def load(case: Case) -> Implementation:
    """The implementation; it serves every case."""
    return IMPLEMENTATION


@torch.no_grad()
def forward(xy: Tensor, out: Tensor) -> None:
    """As :class:`~.contract.Implementation` says."""
    out.copy_(gates.swiglu(xy))


@torch.no_grad()
def backward(xy: Tensor, dout: Tensor, dxy: Tensor, out: Tensor | None) -> None:
    """As :class:`~.contract.Implementation` says."""
    gradient, output = gates.swiglu_backward(xy, dout)
    dxy.copy_(gradient)
    if out is not None:
        out.copy_(output)


IMPLEMENTATION = Implementation(forward, backward)
