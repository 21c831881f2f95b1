"""A matrix times a few vectors on a CPU, by whichever of torch's ways reads its weights fastest.

A token's time is that of reading the weights. A processor reads a float32 of them in half the time
that the products behind ``functional.linear`` take: of one vector these are MKL's, of several those
for square matrices. So on x86-64 a larger matrix goes through oneDNN, or for two to four vectors is
itself the left factor. Elsewhere nothing has been measured, and one vector is multiplied by
``mv``.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.passing import passing

Linear = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

# A smaller matrix is multiplied before oneDNN has looked its arguments over.
FEWEST_WEIGHTS = 1 << 18
# With more, the usual products are as fast.
MOST_VECTORS = 16
# By which a matrix is the left factor; of longer rows, two.
MOST_ON_THE_RIGHT, MOST_COLUMNS = 4, 1024


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``functional.linear(x, weight, bias)``; x (batch, columns), all in float32 or all in another.

    Its sums are in another order, so that the result is equal to rounding.
    """
    batch = x.shape[0]
    if batch <= MOST_VECTORS and weight.numel() >= FEWEST_WEIGHTS and _is_measured(weight):
        if 1 < batch <= (MOST_ON_THE_RIGHT if weight.shape[1] <= MOST_COLUMNS else 2):
            out = functional.linear(weight, x).t()
            return out.contiguous() if bias is None else out + bias
        linear = _by_onednn()
        if linear is not None:
            return linear(x, weight, bias)
    if batch > 1:
        return functional.linear(x, weight, bias)
    vector = x.squeeze(0)
    out = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
    return out.unsqueeze(0)


def _is_measured(weight: Tensor) -> bool:
    """Whether it is known which way is the fastest."""
    return _X86_64 and weight.dtype == torch.float32 and weight.is_contiguous()


_X86_64 = platform.machine() in ("x86_64", "AMD64")


def _by_onednn() -> Linear | None:
    """What multiplies by oneDNN; None where torch has no such thing, or is not to use it."""
    return _linear() if torch._C._get_mkldnn_enabled() else None


@lru_cache(maxsize=None)
def _linear() -> Linear | None:
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
