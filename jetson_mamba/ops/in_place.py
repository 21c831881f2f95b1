"""Products that are written into a given tensor, in a form that a graph can hold."""

from __future__ import annotations

import torch
from torch import Tensor

from .operators import is_compiling


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, out: Tensor) -> Tensor:
    """``out = input + mat1 @ mat2``; ``out``, with any strides, may be ``input`` itself.

    Dynamo refuses ``torch.addmm(..., out=out)`` where ``out`` is not contiguous.
    """
    if is_compiling():
        return out.copy_(torch.addmm(input, mat1, mat2))
    return torch.addmm(input, mat1, mat2, out=out)
