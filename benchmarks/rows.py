"""What a table of kernel timings is made of: rows, and how a call is timed on a GPU."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch


class Row(NamedTuple):
    """A call to time and the bytes that it cannot avoid to move."""

    op: str
    shape: tuple[int, int, int]
    dtype: torch.dtype
    layout: str
    least_bytes: int
    call: Callable[[], Any]


def microseconds(call: Callable[[], Any], milliseconds: int = 200) -> float:
    """Median over repetitions that take about ``milliseconds``, each from a cold cache."""
    from triton.testing import do_bench

    return float(do_bench(call, rep=milliseconds, return_mode="median")) * 1e3


def copy_rate() -> float:
    """Bytes per microsecond, read and written, of a large copy on the device."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / microseconds(lambda: target.copy_(source))
