"""A recurrence as one call of torch, where torch takes the steps in their order."""

from __future__ import annotations

from functools import lru_cache
from typing import Tuple

import torch
from torch import Tensor

Steps = Tuple[Tensor, ...]


def multiply_and_add_in_order(sums: Steps, factors: Steps, others: Steps) -> None:
    """``sums[t] += factors[t] * others[t]`` for one t after another; others may be earlier sums.

    On a CPU torch does that in one call: the interpreter is entered once and not for every step,
    and other threads run meanwhile. On a GPU that call does all at once.
    """
    if sums and sums[0].device.type == "cpu" and _are_taken_in_order():
        torch._foreach_addcmul_(sums, factors, others)
        return
    for each, factor, other in zip(sums, factors, others):
        each.addcmul_(factor, other)


@lru_cache(maxsize=None)
def _are_taken_in_order() -> bool:
    """Whether this torch does so, which it does not promise."""
    if not hasattr(torch, "_foreach_addcmul_"):
        return False
    with torch.inference_mode(False), torch.no_grad():
        steps = torch.ones(64, 2, dtype=torch.float64, device="cpu")
        each = steps.unbind(0)
        torch._foreach_addcmul_(each[1:], steps.add(1).unbind(0)[1:], each[:-1])
        right = [1.0]
        for _ in range(63):
            right.append(1 + 2 * right[-1])
        # What a step reads has changed: the factors were 2 before.
        return steps[:, 0].tolist() == right
