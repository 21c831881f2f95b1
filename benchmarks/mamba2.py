"""A Mamba-2 block on a GPU by each backend of its op.

Among them are the project's kernels and upstream's Triton. ``python -m benchmarks.mamba2`` needs a
CUDA GPU and mamba_ssm on the path. For each size and backend it prints medians over calls that
follow each other, in microseconds: under ``no_grad``, and of a step, forward and backward; what the
GPU works of each, and its kernels; the peak of memory of each beyond what stands before it; and how
far the output and the gradients are from those of the PyTorch backend in float64 (relative norms).
``--compiled`` times the block compiled, ``--kernels`` lists what the GPU spends a call on,
``--backend pytorch`` leaves the others out.

``--first`` prints instead what the first forward and the first backward pass of a process take, in
seconds, once the GPU's context, its matrix library and what torch imports for its first backward
pass are there.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Callable

import torch
from torch import Tensor, nn

import jetson_mamba
from benchmarks.calls import block_of

# Batch, seqlen, d_model.
SIZES = ((8, 2048, 768), (1, 1024, 768), (4, 4096, 2560))
BACKENDS = ("cuda", "triton", "pytorch")
# Calls between two synchronisations.
CALLS = 5


def passes(
    module: nn.Module, x: Tensor, gradient: Tensor, called: Any = None
) -> dict[str, Callable[[], Any]]:
    """The two ways to call a block that are timed; ``called`` may be it compiled."""
    called = module if called is None else called
    leaf = x.detach().requires_grad_()

    def without_gradients() -> Tensor:
        with torch.no_grad():
            found: Tensor = called(x)
        return found

    def step() -> list[Tensor]:
        out = called(leaf)
        parameters = list(module.parameters())
        return [out.detach(), *torch.autograd.grad(out, [leaf, *parameters], gradient)]

    return {"no_grad": without_gradients, "step": step}


def median(call: Callable[[], Any], runs: int) -> float:
    """Microseconds from one call to the next, of calls that follow each other."""
    times = []
    for _ in range(runs):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
        times.append((time.perf_counter() - start) / CALLS)
    return 1e6 * statistics.median(times)


def peak(call: Callable[[], Any]) -> float:
    """MB that a call takes at most, beyond what is allocated before it."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def kernels(call: Callable[[], Any], most: int) -> list[tuple[float, int, str]]:
    """What the GPU spends a call on: microseconds, launches, name; all first."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    sums: dict[str, tuple[float, int]] = {}
    for event in profile.events():
        if event.device_type.name == "CUDA":
            total, count = sums.get(event.name, (0.0, 0))
            sums[event.name] = (total + event.time_range.elapsed_us(), count + 1)
    rows = [(total / CALLS, count // CALLS, name) for name, (total, count) in sums.items()]
    everything = (sum(row[0] for row in rows), sum(row[1] for row in rows), "all")
    return [everything, *sorted(rows, reverse=True)[:most]]


def errors(found: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Of the output, and the largest of the gradients."""
    norms = [
        float((each.double() - right).norm() / right.norm()) for each, right in zip(found, exact)
    ]
    return norms[0], max(norms[1:])


def print_first(backend: str | None, size: tuple[int, int, int]) -> None:
    """Seconds that the first passes of this process take."""
    module = block_of("Mamba2", size[2])
    x = torch.randn(*size, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    product = x[0] @ x[0].T
    product.backward(torch.ones_like(product))
    times = []
    with jetson_mamba.backend(ssd=backend):
        torch.cuda.synchronize()
        times.append(time.perf_counter())
        out = module(x)
        torch.cuda.synchronize()
        times.append(time.perf_counter())
        out.backward(torch.ones_like(out))
        torch.cuda.synchronize()
        times.append(time.perf_counter())
    forward, backward = times[1] - times[0], times[2] - times[1]
    print(f"first forward {forward:.2f} s, first backward {backward:.2f} s", flush=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, action="append", help="only these")
    parser.add_argument("--all-sizes", action="store_true", help=f"not only {SIZES[:2]}")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="the N longest")
    parser.add_argument("--compiled", action="store_true", help="time the compiled block")
    parser.add_argument("--first", action="store_true", help="time the first calls, no others")
    chosen = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}", flush=True)
    if chosen.first:
        print_first(chosen.backend[0] if chosen.backend else None, SIZES[0])
        return
    print("| B, L, d_model | backend | no_grad | step | GPU | GPU of a step | kernels | of a step ")
    print("| MB | MB of a step | error | of gradients |")
    for size in SIZES if chosen.all_sizes else SIZES[:2]:
        for backend in chosen.backend or BACKENDS:
            with jetson_mamba.backend(ssd=backend):
                print_row(size, backend, chosen)


def print_row(size: tuple[int, int, int], backend: str, chosen: argparse.Namespace) -> None:
    """The figures of one size and the backend in force."""
    module = block_of("Mamba2", size[2])
    x = torch.randn(*size, device="cuda", dtype=torch.bfloat16)
    gradient = torch.randn_like(x)
    found = passes(module, x[:1], gradient[:1])["step"]()
    with jetson_mamba.backend(ssd="pytorch"):
        exact = block_of("Mamba2", size[2]).double()
        right = passes(exact, x[:1].double(), gradient[:1].double())["step"]()
    called: Any = torch.compile(module) if chosen.compiled else module
    ways = passes(module, x, gradient, called)
    for call in ways.values():
        for _ in range(3):
            call()
    figures = [f"{median(call, chosen.runs):.0f}" for call in ways.values()]
    spent = [kernels(call, chosen.kernels) for call in ways.values()]
    figures += [f"{rows[0][0]:.0f}" for rows in spent]
    figures += [f"{rows[0][1]}" for rows in spent]
    figures += [f"{peak(call):.0f}" for call in ways.values()]
    figures += [f"{error:.1e}" for error in errors(found, right)]
    print(f"| {', '.join(map(str, size))} | {backend} | {' | '.join(figures)} |", flush=True)
    for way, rows in zip(ways, spent) if chosen.kernels else ():
        for total, count, name in rows:
            print(f"  {way} {total:8.1f} us {count:4} {name[:110]}", flush=True)


if __name__ == "__main__":
    main()
