"""Which backend serves a norm: the CUDA kernels, where they can.

A norm that they do not serve is plain tensor operations, which torch differentiates.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.paths import Way, way
from jetson_mamba.kernels.tensors import MAXIMUM_GRID, NUMBERS, rows

from . import cuda, pytorch
from .contract import Case, Gate, Implementation, Options

# Within which the results of a trial have to agree with PyTorch's, relative norms: it tells
# rounding from another operation.
TRIAL_TOLERANCE = 5e-2


def kernels_for(
    x: Tensor, weight: Tensor, group: int, *others: Tensor | None, needs_backward: bool
) -> Implementation | None:
    """The kernels, where they serve a norm of x (..., dim) by groups of columns; else None.

    ``others`` are what belongs to it besides; those that are not of the dtype of x may be of any
    that the kernels know.
    """
    if not x.is_cuda or way(x, weight, *others) is not Way.KERNELS:
        return None
    return kernels_on_gpu(x, weight, group, *others, needs_backward=needs_backward)


def kernels_on_gpu(
    x: Tensor, weight: Tensor, group: int, *others: Tensor | None, needs_backward: bool
) -> Implementation | None:
    """The same where it is known that the call is one of kernels, on a GPU."""
    if x.numel() == 0:
        return None
    if not cuda.takes(group, needs_backward) or x.shape[-1] // group > MAXIMUM_GRID:
        return None
    for each in (x, weight, *others):
        if each is not None and each.dtype not in NUMBERS:
            return None
    found = OP.implementation(Case(x.device, x.dtype, weight.dtype))
    return None if found is pytorch.IMPLEMENTATION else found


def begin(x: Tensor, weight: Tensor) -> None:
    """Begin to choose the kernels of such a norm, which is about to be made."""
    if x.dtype in NUMBERS and weight.dtype in NUMBERS:
        OP.begin(Case(x.device, x.dtype, weight.dtype))


def rows_of(tensor: Tensor) -> Tensor:
    """(..., dim) as (rows, dim) with columns that are contiguous; a copy only where it must be."""
    return rows(tensor.reshape(-1, tensor.shape[-1]))


@torch.no_grad()
def _trial(implementation: Implementation, case: Case) -> None:
    """Both passes with a gate, compared with PyTorch on the CPU: `Op` says why."""
    if implementation is pytorch.IMPLEMENTATION:
        return
    # 16 bits hold these numbers as they are.
    drawn = [
        torch.arange(start, start + 64, device="cpu").mul(7).remainder(11).sub(5).div(4).view(4, 16)
        for start in (0, 3, 5)
    ]
    scales = torch.arange(1.0, 17.0, device="cpu", dtype=torch.float32).div(16)
    options = Options(1e-5, 8, True, Gate.INPUT)
    results = []
    for each, device, dtypes in (
        (implementation, case.device, (case.dtype, case.weight_dtype)),
        (pytorch.IMPLEMENTATION, torch.device("cpu"), (torch.float32, torch.float32)),
    ):
        x, z, dout = (values.to(device, dtypes[0]) for values in drawn)
        weight = scales.to(device, dtypes[1])
        results.append(
            (
                each.forward(x, None, z, weight, None, None, dtypes[0], options, False).out,
                *each.backward(x, z, weight, None, dout, None, None, options, None),
            )
        )
    for name, actual, expected in zip(("output", "dx", "", "dz", "dweight"), *results):
        if expected is not None:
            right = expected.float()
            difference = (cast(Tensor, actual).cpu().float() - right).norm()
            # A comparison that a NaN fails.
            if not bool(difference <= TRIAL_TOLERANCE * right.norm()):
                raise RuntimeError(f"the {name} of a trial is wrong")


OP: Op[Case, Implementation] = Op("norms", str(__package__), ("cuda", "pytorch"), _trial)
