"""A Mamba-2 block on a GPU by the PyTorch backend of its op, beside upstream's Triton kernels.

``python -m benchmarks.ssd_pytorch`` needs a CUDA GPU and mamba_ssm on the path. For each size and
backend it prints medians over calls that follow each other, in microseconds: under ``no_grad``, and
of a step, forward and backward; the peak of memory of each beyond what stands before it; and how
far the output and the gradients are from those of the PyTorch backend in float64 (relative norms).
``--kernels`` lists what the GPU spends a call on; ``--backend pytorch`` leaves Triton out.
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
BACKENDS = ("pytorch", "triton")
# Calls between two synchronisations.
CALLS = 5


def passes(module: nn.Module, x: Tensor, gradient: Tensor) -> dict[str, Callable[[], Any]]:
    """The two ways to call a block that are timed."""
    leaf = x.detach().requires_grad_()

    def without_gradients() -> Tensor:
        with torch.no_grad():
            found: Tensor = module(x)
        return found

    def step() -> list[Tensor]:
        out = module(leaf)
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
    """What the GPU spends a call on: microseconds, launches, name; the longest first."""
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
    rows.append((sum(row[0] for row in rows), sum(row[1] for row in rows), "all"))
    return sorted(rows, reverse=True)[: most + 1]


def errors(found: list[Tensor], exact: list[Tensor]) -> tuple[float, float]:
    """Of the output, and the largest of the gradients."""
    norms = [
        float((each.double() - right).norm() / right.norm()) for each, right in zip(found, exact)
    ]
    return norms[0], max(norms[1:])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=BACKENDS, help="only this one")
    parser.add_argument("--all-sizes", action="store_true", help=f"not only {SIZES[0]}")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--kernels", type=int, default=0, metavar="N", help="the N longest")
    chosen = parser.parse_args()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print("| B, L, d_model | backend | no_grad | step | MB | MB of a step | error | of gradients |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for size in SIZES if chosen.all_sizes else SIZES[:1]:
        module = block_of("Mamba2", size[2])
        x = torch.randn(*size, device="cuda", dtype=torch.bfloat16)
        gradient = torch.randn_like(x)
        with jetson_mamba.backend(ssd="pytorch"):
            exact = passes(
                block_of("Mamba2", size[2]).double(), x[:1].double(), gradient[:1].double()
            )
            right = exact["step"]()
            del exact
        for backend in (chosen.backend,) if chosen.backend else BACKENDS:
            with jetson_mamba.backend(ssd=backend):
                found = passes(module, x[:1], gradient[:1])["step"]()
                ways = passes(module, x, gradient)
                for call in ways.values():
                    for _ in range(3):
                        call()
                figures = [f"{median(call, chosen.runs):.0f}" for call in ways.values()]
                figures += [f"{peak(call):.0f}" for call in ways.values()]
                figures += [f"{error:.1e}" for error in errors(found, right)]
                print(f"| {', '.join(map(str, size))} | {backend} | {' | '.join(figures)} |")
                for way, call in ways.items() if chosen.kernels else ():
                    for total, count, name in kernels(call, chosen.kernels):
                        print(f"  {way} {total:8.1f} us {count:4} {name[:110]}", flush=True)


if __name__ == "__main__":
    main()
