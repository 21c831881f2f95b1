"""A matrix times a few vectors on a CPU, by whichever of torch's ways reads its weights fastest.

A token's time is that of reading the weights. One core reads those in float32 in half the time
that the products behind ``functional.linear`` take: of one vector these are MKL's, of several those
for square matrices. So on x86-64 a larger matrix goes through oneDNN, or for two to four vectors is
itself the left factor. Elsewhere nothing has been measured, and one vector is multiplied by
``mv``.

MKL takes one vector on the thread that asks, whatever the matrix. oneDNN divides it among all, and
a token of a hundred products is then ten times as long beside busy processes; so it is not let.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch import workers
from jetson_mamba.dispatch.passing import passing

Linear = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

# A smaller matrix is multiplied before oneDNN has looked its arguments over.
FEWEST_WEIGHTS = 1 << 18
# With more, the usual products are as fast.
MOST_VECTORS = 16
# By which a matrix is the left factor; of longer rows, two.
MOST_ON_THE_RIGHT, MOST_COLUMNS = 4, 1024
MOST_THREADS = 2


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``functional.linear(x, weight, bias)``; x (batch, columns), all in one dtype.

    Its sums are in another order, so that the result is equal to rounding.
    """
    batch = x.shape[0]
    if batch <= MOST_VECTORS and weight.numel() >= FEWEST_WEIGHTS and _is_measured(weight):
        # Of two threads, one is as fast as both in the usual way; more of them are worth a wait.
        if batch == 1 or torch.get_num_threads() <= MOST_THREADS:
            out = workers.undivided(_of_large, x, weight, bias)
        else:
            out = _of_large(x, weight, bias)
        if out is not None:
            return out
    if batch > 1:
        return functional.linear(x, weight, bias)
    vector = x.squeeze(0)
    out = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
    return out.unsqueeze(0)


def _of_large(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    if 1 < x.shape[0] <= (MOST_ON_THE_RIGHT if weight.shape[1] <= MOST_COLUMNS else 2):
        out = functional.linear(weight, x).t().contiguous()
        return out if bias is None else out.add_(bias)
    # Whoever has switched oneDNN off means it.
    linear = _onednn() if torch._C._get_mkldnn_enabled() else None
    return None if linear is None else linear(x, weight, bias)


def _is_measured(weight: Tensor) -> bool:
    """Whether it is known which way is the fastest."""
    return _X86_64 and weight.dtype == torch.float32 and weight.is_contiguous()


_X86_64 = platform.machine() in ("x86_64", "AMD64")


@lru_cache(maxsize=None)
def _onednn() -> Linear | None:
    """What multiplies by oneDNN, where torch has it."""
    try:
        operator: Any = torch.ops.mkldnn._linear_pointwise.default

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            out: Tensor = operator(x, weight, bias, "none", [], "")
            return out

        with torch.inference_mode():
            x, weight = torch.arange(6.0).view(2, 3), torch.arange(12.0).view(4, 3)
            right = x @ weight.t()
            return linear if torch.equal(linear(x, weight, None), right) else None
    except Exception as error:
        # Built without it, or with another of that name.
        if passing(error) is not None:
            raise
        return None
