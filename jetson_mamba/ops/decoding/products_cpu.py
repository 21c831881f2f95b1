"""A matrix times a few vectors on a CPU, by whichever of torch's ways reads its weights fastest.

A token's time is that of reading the weights. One core reads those in float32 in half the time
that the products behind ``functional.linear`` take: of one vector these are MKL's, of several those
for square matrices. So on x86-64 a larger matrix goes through oneDNN, or for two to four vectors is
itself the left factor. Elsewhere nothing has been measured, and one vector is multiplied by
``mv``.

MKL takes one vector on the thread that asks, whatever the matrix. oneDNN divides it among all: in
half the time, where the cores are free. Beside busy processes a token of a hundred products is then
ten times as long, so that each size is left to one thread for a while after calls that took
longer than by one.
"""

from __future__ import annotations

import platform
from functools import lru_cache
from time import perf_counter
from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch import workers
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.passing import passing

Linear = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]

# A smaller matrix is multiplied before oneDNN has looked its arguments over.
FEWEST_WEIGHTS = 1 << 18
# With more, the usual products are as fast.
MOST_VECTORS = 16
# By which a matrix is the left factor; of longer rows, two.
MOST_ON_THE_RIGHT, MOST_COLUMNS = 4, 1024
# So many calls at most are one thread's after one that took longer by all.
MOST_ALONE = 1600
# Over so many calls their time is averaged.
LATE = 8


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``functional.linear(x, weight, bias)``; x (batch, columns), all in one dtype.

    Its sums are in another order, so that the result is equal to rounding.
    """
    batch = x.shape[0]
    if batch <= MOST_VECTORS and weight.numel() >= FEWEST_WEIGHTS and _is_measured(weight):
        out = _of_large(x, weight, bias)
        if out is not None:
            return out
    if batch > 1:
        return functional.linear(x, weight, bias)
    vector = x.squeeze(0)
    out = torch.mv(weight, vector) if bias is None else torch.addmv(bias, weight, vector)
    return out.unsqueeze(0)


class _Tried:
    """What is known of a product on one thread and on all."""

    __slots__ = ("alone", "by_all", "divides", "patience", "seconds")

    def __init__(self, seconds: float, divides: bool) -> None:
        # The least that it took on one thread.
        self.seconds = seconds
        # Whether its bits are the same on all.
        self.divides = divides
        # So many more calls are one thread's; the first had to make what the others find.
        self.alone = 1
        self.patience = workers.CALLS_ALONE
        # What it takes on all of late.
        self.by_all = 0.0

    def divided(self, seconds: float) -> None:
        """Decide after a call on all threads how many are to be one's."""
        self.by_all += (seconds - self.by_all) / LATE
        if self.by_all > self.seconds:
            self.alone, self.by_all = self.patience, 0.0
            self.patience = min(2 * self.patience, MOST_ALONE)
        elif seconds <= self.seconds:
            self.patience = max(self.patience - 1, workers.CALLS_ALONE)


def _of_large(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
    """By all threads while that is quicker than by one, which other programs may have ended."""
    threads = workers.threads_for(weight.numel())
    given = (x, weight, bias)
    if threads == 1:
        return workers.undivided(_by_fastest, *given)
    key = (*weight.shape, x.shape[0], bias is None, threads)
    tried = _TRIED.get(key)
    start = perf_counter()
    if tried is not None and tried.divides and tried.alone <= 0:
        out = _by_fastest(*given)
        tried.divided(perf_counter() - start)
        return out
    out = workers.undivided(_by_fastest, *given)
    if out is None:
        return None
    seconds = perf_counter() - start
    if tried is None:
        _TRIED.put(key, _Tried(seconds, _is_equal(out, _by_fastest(*given))))
    else:
        tried.alone -= 1
        tried.seconds = min(tried.seconds, seconds)
    return out


_TRIED: Memo[Any, _Tried] = Memo(256)


def _is_equal(out: Tensor, other: Tensor | None) -> bool:
    return other is not None and torch.equal(out, other)


def _by_fastest(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor | None:
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
