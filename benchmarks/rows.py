"""The rows of a table of kernel timings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Callable, NamedTuple

import torch

from jetson_mamba.report.timing import Timer


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
    return _timer().microseconds(call, milliseconds)


def copy_rate() -> float:
    """Bytes per microsecond, read and written, of a large copy on the device."""
    return _timer().copy_rate()


@lru_cache(maxsize=1)
def _timer() -> Timer:
    return Timer(torch.device("cuda"))
