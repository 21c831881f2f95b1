"""What a backend of the convolution has to get right before it is used."""

from __future__ import annotations

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

    The numbers come from no generator, whose state is the user's.
    """
    if implementation is pytorch.IMPLEMENTATION:
        return
    x, weight, bias, dout, state = (
        torch.arange(start, start + count, device=case.device)
        .mul(7)
        .remainder(11)
        .sub(5)
        .div(4)
        .to(dtype)
        for start, count, dtype in (
            (0, 128, case.dtype),
            (3, 8 * case.width, case.weight_dtype),
            (1, 8, case.weight_dtype),
            (5, 128, case.dtype),
            (2, 16 * case.width, case.dtype),
        )
    )
    x, dout = x.view(2, 8, 8), dout.view(2, 8, 8)
    weight, state = weight.view(8, case.width), state.view(2, 8, case.width)
    results = []
    for candidate in (implementation, pytorch.IMPLEMENTATION):
        conv_state = state.clone()
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
        difference = (cast(Tensor, actual).float() - cast(Tensor, expected).float()).norm()
        # A comparison that a NaN fails.
        if not bool(difference <= tolerance * cast(Tensor, expected).float().norm()):
            raise RuntimeError(f"the {name} of a trial is wrong")
