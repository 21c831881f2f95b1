"""CUDA events that can be used without a GPU.

mamba-ssm times its text generation by them. Without a GPU nothing runs asynchronously, so the
clock says what an event would.
"""

from __future__ import annotations

import time
from typing import Any

import torch


def event(enable_timing: bool = False) -> Any:
    """An event of CUDA, or where there is none a :class:`ClockEvent`."""
    if torch.cuda.is_available():
        return torch.cuda.Event(enable_timing=enable_timing)
    return ClockEvent()


def synchronize() -> None:
    """Wait for what the GPU computes, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class ClockEvent:
    """A moment of the monotonic clock, with the methods of a ``torch.cuda.Event``."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def record(self) -> None:
        """Let this be the moment."""
        self._seconds = time.perf_counter()

    def elapsed_time(self, end_event: ClockEvent) -> float:
        """The milliseconds from this moment to that of ``end_event``; both must be recorded."""
        if self._seconds is None or end_event._seconds is None:
            raise RuntimeError("elapsed_time: expected two recorded events, found one that is not")
        return (end_event._seconds - self._seconds) * 1000.0
