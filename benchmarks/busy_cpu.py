"""How long the ops in PyTorch take on a CPU that other programs use too.

``python -m benchmarks.busy_cpu [--busy 2]`` prints, for each op, milliseconds by one thread and by
as many as torch takes of itself, alone and beside so many processes that do nothing but count.
Medians over ``--runs``; each cell is a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from typing import Any, Callable

import torch
from torch import Tensor

LENGTH, CHANNELS, HEADS, HEADDIM = 2048, 1536, 24, 64


def calls() -> dict[str, Callable[[], Any]]:
    """The ops of a layer of the published 130M models, at batch 1, and its step at batch 16."""
    from jetson_mamba.ops.causal_conv1d import causal_conv1d_fn
    from jetson_mamba.ops.decoding import selective_state_update
    from jetson_mamba.ops.selective_scan import selective_scan_fn
    from jetson_mamba.ops.ssd import mamba_chunk_scan_combined

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape)

    def both(call: Callable[[], Tensor]) -> Callable[[], Any]:
        return lambda: call().sum().backward()

    def alone(call: Callable[[], Any]) -> Callable[[], Any]:
        return torch.no_grad()(call)

    u, z = drawn(1, CHANNELS, LENGTH).requires_grad_(), drawn(1, CHANNELS, LENGTH)
    A, B = -torch.rand(CHANNELS, 16), drawn(1, 1, 16, LENGTH)

    def scan() -> Any:
        out: Any = selective_scan_fn(u, z, A, B, B, A[:, 0], z, A[:, 0], True)
        return out

    x, dt = drawn(1, LENGTH, HEADS, HEADDIM).requires_grad_(), drawn(1, LENGTH, HEADS)
    BC = drawn(1, LENGTH, 1, 128)

    def ssd() -> Any:
        out: Any = mamba_chunk_scan_combined(
            x, dt, A[:HEADS, 0], BC, BC, chunk_size=256, dt_softplus=True
        )
        return out

    weight = drawn(CHANNELS, 4)

    def convolution() -> Any:
        return causal_conv1d_fn(u, weight, None, activation="silu")

    states, token = torch.zeros(16, HEADS, HEADDIM, 128), drawn(16, HEADS, HEADDIM)
    per_head = A[:HEADS, 0].view(HEADS, 1)

    def step() -> Tensor:
        return selective_state_update(
            states,
            token,
            per_head.expand(16, HEADS, HEADDIM),
            per_head.unsqueeze(-1).expand(HEADS, HEADDIM, 128),
            BC[0, :16],
            BC[0, :16],
            dt_softplus=True,
        )

    return {
        "selective scan, forward": alone(scan),
        "selective scan, forward and backward": both(scan),
        "Mamba-2's scan, forward": alone(ssd),
        "Mamba-2's scan, forward and backward": both(ssd),
        "convolution, forward": alone(convolution),
        "convolution, forward and backward": both(convolution),
        "step of Mamba-2, batch 16": alone(step),
    }


def measure(name: str, runs: int) -> float:
    """Milliseconds of a call."""
    call = calls()[name]
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def cell(name: str, threads: int, busy: int, runs: int) -> float:
    """The same in a process of its own, beside busy ones; ``threads`` 0 is torch's own number."""
    count = [sys.executable, "-S", "-c", "while True: pass"]
    others = [subprocess.Popen(count) for _ in range(busy)]
    environment = {key: value for key, value in os.environ.items() if key != "OMP_NUM_THREADS"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.busy_cpu", "--cell", name, "--runs", str(runs)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env=environment,
        )
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--busy", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--cell", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.cell:
        print(measure(given.cell, given.runs))
        return
    print(f"{os.cpu_count()} cores, torch {torch.__version__}, {torch.get_num_threads()} threads")
    print(f"| op | 1 thread | all | 1 thread, {given.busy} beside | all, {given.busy} beside |")
    print("| --- | --- | --- | --- | --- |")
    for name in calls():
        times = [
            cell(name, threads, busy, given.runs) for busy in (0, given.busy) for threads in (1, 0)
        ]
        print(f"| {name} | {' | '.join(f'{each:.1f}' for each in times)} |", flush=True)


if __name__ == "__main__":
    main()
