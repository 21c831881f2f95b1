"""What a call of the CUDA kernels costs on the CPU, from the call to its return.

``python -m benchmarks.host_time`` prints one table on the GPU at hand: the median over rounds of
calls that follow each other without waiting for the GPU, of tensors so small that it keeps up.
Beside each stand the launches and allocations that a call makes, which are the least of it.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Callable, Iterator, NamedTuple

import torch

from benchmarks.kernels_scan import drawn_scan
from jetson_mamba.ops.causal_conv1d import cuda as causal_conv1d
from jetson_mamba.ops.causal_conv1d.contract import Case
from jetson_mamba.ops.selective_scan import cuda as selective_scan
from jetson_mamba.ops.selective_scan.contract import Returning

CALLS, ROUNDS = 200, 20
SHAPE = (1, 64, 64)
WIDTH = 4


class Timed(NamedTuple):
    """A call, and what it makes."""

    name: str
    launches: int
    allocations: int
    call: Callable[[], Any]


def timed() -> Iterator[Timed]:
    """Every function of the two ops."""
    scan = drawn_scan(SHAPE, torch.bfloat16)
    scanned = selective_scan.forward(scan)
    returning = Returning(scan.u, scanned.x, scanned.out, None, False)
    yield Timed("scan forward", 1, 3, lambda: selective_scan.forward(scan))
    yield Timed("scan output", 1, 1, lambda: selective_scan.output(scan))
    yield Timed("scan backward", 2, 7, lambda: selective_scan.backward(scan, returning))

    device = torch.device("cuda", torch.cuda.current_device())
    kernels = causal_conv1d.load(Case(device, torch.bfloat16, torch.bfloat16, WIDTH))
    x, weight = scan.u, torch.ones(SHAPE[1], WIDTH, device=device, dtype=torch.bfloat16)
    bias, dx = weight[:, 0].contiguous(), torch.empty_like(x)
    state = torch.zeros(SHAPE[0], SHAPE[1], WIDTH, device=device, dtype=torch.bfloat16)
    step = x[:, :, :1]
    nothing = (None, None, None)
    yield Timed("conv forward", 1, 1, lambda: kernels.forward(x, weight, bias, *nothing, True))
    yield Timed(
        "conv backward",
        2,
        3,
        lambda: kernels.backward(x, weight, bias, x, *nothing, dx, False, True),
    )
    yield Timed(
        "conv update", 1, 1, lambda: kernels.update(step, state, weight, bias, None, None, True)
    )


def microseconds(call: Callable[[], Any]) -> float:
    """Median over rounds of the time of one call."""
    call()
    times = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        for _ in range(CALLS):
            call()
        times.append((time.perf_counter() - begin) / CALLS)
    return 1e6 * statistics.median(times)


def main() -> None:
    """Print the table."""
    print(torch.cuda.get_device_name())
    print("| call | launches | allocations | µs |")
    print("| --- | --- | --- | --- |")
    for name, launches, allocations, call in timed():
        print(f"| {name} | {launches} | {allocations} | {microseconds(call):.1f} |", flush=True)


if __name__ == "__main__":
    main()
