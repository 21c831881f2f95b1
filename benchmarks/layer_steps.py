"""How long a layer's step takes in a CUDA graph, by few kernels or as upstream writes it.

``python -m benchmarks.layer_steps`` needs a CUDA GPU and mamba_ssm on the path. For a layer of each
kind, with the sizes of the published 130M and 2.7B models and random bfloat16 weights, it prints
microseconds for each of as many layers as no cache holds, medians over replays of one graph, beside
the time of their weights' bytes at the rate of a large copy. Then, by few kernels, how many a step
launches, and microseconds from call to call of one layer's ``step`` outside of a graph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable

import torch

import jetson_mamba  # noqa: F401 - activates the overrides
from benchmarks.rows import copy_rate
from jetson_mamba.ops.decoding import layers

SIZES = (768, 2560)
# Of all layers together, in bytes: more than caches hold.
LEAST_BYTES = 1 << 28


def microseconds(call: Callable[[], Any], runs: int) -> float:
    """Of a graph of the call, which is made once before."""
    aside = torch.cuda.Stream()
    with torch.cuda.stream(aside):
        call()
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    times: list[float] = []
    for _ in range(runs):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(1e3 * begin.elapsed_time(end))
    return statistics.median(times)


def launched(call: Callable[[], Any]) -> int:
    """How many kernels a call launches."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    return sum(each.device_type.name == "CUDA" for each in profile.events() or ())


def call_to_call(call: Callable[[], Any], runs: int, calls: int = 200) -> float:
    """Microseconds of a call of many, which do not wait for the GPU."""
    times: list[float] = []
    for _ in range(runs + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - start) / calls)
    return statistics.median(times[1:])


def main() -> None:
    """Print the table."""
    from mamba_ssm.modules.mamba2 import Mamba2
    from mamba_ssm.modules.mamba_simple import Mamba

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--runs", type=int, default=15)
    given = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    columns = ["layer", "d_model", "batch", "bytes' time", "few kernels", "upstream's", "kernels"]
    print(f"| {' | '.join([*columns, 'call to call'])} |")
    print(f"|{' --- |' * (len(columns) + 1)}")
    some: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    for width in SIZES:
        for kind in (Mamba, Mamba2):
            first = kind(width, **some)
            size = sum(each.numel() * each.element_size() for each in first.parameters())
            blocks = [kind(width, **some).eval() for _ in range(-(-LEAST_BYTES // size))]
            for batch in given.batches:
                hidden = torch.randn(batch, 1, width, **some)
                states = [block.allocate_inference_cache(batch, 0) for block in blocks]

                def step() -> None:
                    for block, own in zip(blocks, states):  # noqa: B023
                        block.step(hidden, *own)  # noqa: B023

                def one() -> None:
                    blocks[0].step(hidden, *states[0])  # noqa: B023

                found, most = [], layers.MOST_SEQUENCES
                with torch.no_grad():
                    for sequences in (most, 0):
                        layers.MOST_SEQUENCES = sequences
                        found.append(microseconds(step, given.runs) / len(blocks))
                    layers.MOST_SEQUENCES = most
                    one()
                    kernels, each_call = launched(one), call_to_call(one, given.runs)
                times = " | ".join(f"{each:.1f}" for each in (size / copy_rate(), *found))
                cells = f"{kind.__name__} | {width} | {batch} | {times}"
                print(f"| {cells} | {kernels} | {each_call:.1f} |", flush=True)


if __name__ == "__main__":
    main()
