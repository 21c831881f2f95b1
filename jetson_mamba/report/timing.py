"""Measures how long a call takes on a device, from a cold cache.

The rate at which the device copies, measured beside the calls, gives each call a floor: the fewest
bytes that it has to move, at that rate.
"""

from __future__ import annotations

import math
import statistics
import time
from typing import Any, Callable

import torch

# What is overwritten before a call, so that none of its arguments is left in a cache.
CACHES_OVER = 5
CPU_COLD_BYTES = 64 << 20
UNKNOWN_COLD_BYTES = 256 << 20
COPY_BYTES = {"cuda": 1 << 30, "cpu": 128 << 20}
LEAST_REPEATS, MOST_REPEATS = 3, 10_000
# Of the repeats, run before them and not counted: clocks rise.
WARM_UP_SHARE = 0.1


class Timer:
    """Times calls on one device, a CUDA GPU or the CPU.

    On a GPU a call is timed by events around it, in a queue that is kept full: what the host takes
    to launch is hidden behind the overwriting of the cache, as long as it takes no longer.
    """

    def __init__(self, device: torch.device) -> None:
        cold = CPU_COLD_BYTES
        if device.type == "cuda":
            if device.index is None:
                device = torch.device("cuda", torch.cuda.current_device())
            cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
            cold = CACHES_OVER * cache or UNKNOWN_COLD_BYTES
        self.device = device
        self._cold = torch.empty(cold, dtype=torch.uint8, device=device)

    def microseconds(self, call: Callable[[], Any], milliseconds: float = 200) -> float:
        """The median over repetitions that take about ``milliseconds`` in all, at least three."""
        self._repeat(call, 1)
        start = time.perf_counter()
        self._repeat(call, 1)
        once = 1e3 * (time.perf_counter() - start)
        repeats = min(max(LEAST_REPEATS, math.ceil(milliseconds / once)), MOST_REPEATS)
        warm_up = int(WARM_UP_SHARE * repeats)
        return statistics.median(self._repeat(call, warm_up + repeats)[warm_up:])

    def copy_rate(self) -> float:
        """Bytes per microsecond, read and written, of a large copy within the device's memory."""
        size = COPY_BYTES[self.device.type]
        if self.device.type == "cuda":
            size = min(size, torch.cuda.mem_get_info(self.device)[0] // 8)
        source = torch.ones(size, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        return 2 * size / self.microseconds(lambda: target.copy_(source))

    def _repeat(self, call: Callable[[], Any], repeats: int) -> list[float]:
        if self.device.type != "cuda":
            return [self._on_the_host(call) for _ in range(repeats)]
        with torch.cuda.device(self.device):
            events = [
                [torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)
            ]
            for start, end in events:
                self._cold.zero_()
                start.record()
                call()
                end.record()
            torch.cuda.synchronize()
            return [1e3 * start.elapsed_time(end) for start, end in events]

    def _on_the_host(self, call: Callable[[], Any]) -> float:
        self._cold.zero_()
        start = time.perf_counter()
        call()
        return 1e6 * (time.perf_counter() - start)
