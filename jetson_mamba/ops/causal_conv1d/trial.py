"""What a backend of the convolution has to get right before it is used."""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor

from . import pytorch
from .contract import Case, Implementation

# Relative norm within which a backend's results have to agree with PyTorch's to be used. It
# tells rounding from another operation, so it is wide.
TRIAL_TOLERANCE = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float32: 1e-3}


@torch.no_grad()
def trial(implementation: Implementation, case: Case) -> None:
    """Run every function once and compare with PyTorch: `Op` says why.

    The numbers come from no generator, whose state is the user's; 16 bits hold them as they are.
    They are made, and compared, on the CPU: on a GPU each operation of torch is loaded first.
    """
    if implementation is pytorch.IMPLEMENTATION:
        return
    drawn = [
        (
            torch.arange(start, start + math.prod(shape), device="cpu")
            .mul(7)
            .remainder(11)
            .sub(5)
            .div(4)
            .view(shape),
            dtype,
        )
        for start, shape, dtype in (
            (0, (2, 8, 8), case.dtype),
            (3, (8, case.width), case.weight_dtype),
            (1, (8,), case.weight_dtype),
            (5, (2, 8, 8), case.dtype),
            (2, (2, 8, case.width), case.dtype),
        )
    ]
    results = []
    for candidate, device in (
        (implementation, case.device),
        (pytorch.IMPLEMENTATION, torch.device("cpu")),
    ):
        is_exact = candidate is pytorch.IMPLEMENTATION
        x, weight, bias, dout, conv_state = (
            each.to(device, torch.float32 if is_exact else dtype, copy=True)
            for each, dtype in drawn
        )
        results.append(
            (
                candidate.forward(x, weight, bias, None, None, None, True),
                *candidate.backward(x, weight, bias, dout, None, None, None, None, False, True)[:3],
                candidate.update(x[..., :1], conv_state, weight, bias, None, None, True),
                conv_state,
            )
        )
    names = ("output", "dx", "dweight", "dbias", "output of a step", "state after a step")
    tolerance = max(TRIAL_TOLERANCE[case.dtype], TRIAL_TOLERANCE[case.weight_dtype])
    for name, actual, expected in zip(names, *results):
        right = cast(Tensor, expected)
        difference = (cast(Tensor, actual).cpu().float() - right).norm()
        # A comparison that a NaN fails.
        if not bool(difference <= tolerance * right.norm()):
            raise RuntimeError(f"the {name} of a trial is wrong")
