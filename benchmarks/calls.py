"""What one call of a block costs, in every way that a block can be called.

``python -m benchmarks.calls`` needs a CUDA GPU and mamba_ssm on the path. For each block and size
it prints, in microseconds, medians over repeated runs of a few calls, the ways in turn: *call*,
from one call to the next where calls follow each other; *CPU*, until the call returns; *GPU*, the
sum of its kernels, and their number, both as torch's profiler sees them. The ways: without the
inference path, with it, compiled, compiled with CUDA graphs (``reduce-overhead``), and captured in
a CUDA graph by hand; with ``--train`` a whole step, forward and backward; with ``--decode`` a step
of one token, as ``generate`` makes it. All of a table is from one run.

``--count`` prints instead how many functions Python calls for it, upstream's and torch's own among
them: a number that no other program on the processor changes.
"""

from __future__ import annotations

import argparse
import cProfile
import dataclasses
import json
import pstats
import statistics
import time
from typing import Any, Callable, Iterator

import torch
from torch import Tensor, nn

import jetson_mamba
from jetson_mamba.dispatch.paths import inference_path

# Batch, seqlen, d_model.
SMALL = ((1, 16, 768), (1, 1024, 768))
LARGE = ((8, 2048, 768), (4, 4096, 2560))
# Calls between two synchronisations: few enough that the GPU's queue never makes the CPU wait.
CALLS = 10


@dataclasses.dataclass(frozen=True)
class Row:
    """One way to call one block; times in microseconds, ``failure`` where that did not work."""

    block: str
    size: tuple[int, int, int]
    way: str
    call: float | None = None
    cpu: float | None = None
    gpu: float | None = None
    kernels: int | None = None
    failure: str | None = None


def block_of(name: str, d_model: int) -> nn.Module:
    """A block in bfloat16 on the GPU, with the settings of the published models.

    "Linear" is torch's, for what torch itself takes of a call.
    """
    torch.manual_seed(0)
    kept: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    if name == "Linear":
        return nn.Linear(d_model, d_model, **kept)
    from mamba_ssm.modules.mamba2 import Mamba2
    from mamba_ssm.modules.mamba_simple import Mamba

    module: nn.Module = (
        Mamba(d_model, **kept)
        if name == "Mamba"
        else Mamba2(d_model, headdim=64, d_state=128, **kept)
    )
    return module


def inference_rows(name: str, size: tuple[int, int, int], runs: int) -> Iterator[Row]:
    """Every way to call a block under ``no_grad``."""
    batch, seqlen, d_model = size
    module = block_of(name, d_model)
    x = torch.randn(batch, seqlen, d_model, device="cuda", dtype=torch.bfloat16)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)
    graphed = torch.compile(module, fullgraph=True, mode="reduce-overhead")

    def without_path() -> None:
        with inference_path(False):
            module(x)

    with torch.no_grad():
        for _ in range(3):
            module(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = module(x)
        ways = {
            "path off": without_path,
            "path on": lambda: module(x),
            "compiled": lambda: compiled(x),
            "reduce-overhead": lambda: graphed(x),
            "graph by hand": graph.replay,
        }
        yield from measured(name, size, ways, runs)
        del kept


def training_rows(name: str, size: tuple[int, int, int], runs: int) -> Iterator[Row]:
    """A step, forward and backward, eager and compiled."""
    batch, seqlen, d_model = size
    module = block_of(name, d_model)
    x = torch.randn(batch, seqlen, d_model, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    gradient = torch.randn(x.shape, device="cuda", dtype=x.dtype)
    torch._dynamo.reset()

    def step(function: Callable[[Tensor], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for each in (x, *module.parameters()):
                each.grad = None
            function(x).backward(gradient)

        return run

    ways = {
        "step": step(module),
        "step, compiled": step(torch.compile(module, fullgraph=True)),
        "step, reduce-overhead": step(
            torch.compile(module, fullgraph=True, mode="reduce-overhead")
        ),
    }
    yield from measured(name, size, ways, runs)


def decoding_rows(name: str, size: tuple[int, int, int], runs: int) -> Iterator[Row]:
    """One token through a block, whose states it updates, eager and in a CUDA graph."""
    batch, _, d_model = size
    module: Any = block_of(name, d_model)
    x = torch.randn(batch, 1, d_model, device="cuda", dtype=torch.bfloat16)
    states = module.allocate_inference_cache(batch, 1)

    def step() -> Any:
        return module.step(x, *states)

    def without_path() -> None:
        with inference_path(False):
            step()

    with torch.no_grad():
        for _ in range(3):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = step()
        ways = {
            "token, path off": without_path,
            "token, path on": step,
            "token, graph by hand": graph.replay,
        }
        yield from measured(name, (batch, 1, d_model), ways, runs)
        del kept


def measured(
    name: str, size: tuple[int, int, int], ways: dict[str, Callable[[], Any]], runs: int
) -> Iterator[Row]:
    """Time calls: medians over ``runs`` runs of a few calls, the ways in turn, after a warm-up.

    In turn, because a GPU that has been busy for a while runs at another clock.
    """
    rows = {}
    for way, call in ways.items():
        rows[way] = Row(name, size, way)
        try:
            for _ in range(5):
                call()
            torch.cuda.synchronize()
        except Exception as error:  # one way that fails leaves the others to be measured
            failure = (str(error).strip() or type(error).__name__).splitlines()[0]
            rows[way] = dataclasses.replace(rows[way], failure=failure)
    working = {way: call for way, call in ways.items() if not rows[way].failure}
    whole: dict[str, list[float]] = {way: [] for way in working}
    enqueued: dict[str, list[float]] = {way: [] for way in working}
    for _ in range(runs):
        for way, call in working.items():
            call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(CALLS):
                call()
            enqueued[way].append((time.perf_counter() - start) / CALLS)
            torch.cuda.synchronize()
            whole[way].append((time.perf_counter() - start) / CALLS)
    for way, call in working.items():
        gpu, kernels = profiled(call)
        rows[way] = dataclasses.replace(
            rows[way],
            call=1e6 * statistics.median(whole[way]),
            cpu=1e6 * statistics.median(enqueued[way]),
            gpu=gpu,
            kernels=kernels,
        )
    yield from rows.values()


def count_rows(name: str, size: tuple[int, int, int]) -> Iterator[tuple[str, int]]:
    """Functions that Python calls, as ``cProfile`` counts them, of two ways to call a block."""
    batch, seqlen, d_model = size
    module = block_of(name, d_model)
    x = torch.randn(batch, seqlen, d_model, device="cuda", dtype=torch.bfloat16)
    leaf, gradient = x.detach().requires_grad_(), torch.randn_like(x)
    parameters = [leaf, *module.parameters()]

    def without_gradients() -> None:
        with torch.no_grad():
            module(x)

    def step() -> None:
        torch.autograd.grad(module(leaf), parameters, gradient)

    for way, call in (("no_grad", without_gradients), ("step", step)):
        for _ in range(5):
            call()
        profile = cProfile.Profile()
        profile.enable()
        call()
        profile.disable()
        total: int = pstats.Stats(profile).total_calls  # type: ignore[attr-defined]
        # All but the end of the profile itself.
        yield way, total - 1


def profiled(call: Callable[[], Any]) -> tuple[float, int]:
    """Microseconds of all kernels and copies of a call, and how many there are."""
    activities = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(CALLS):
            call()
        torch.cuda.synchronize()
    on_gpu = [event for event in profile.events() if event.device_type.name == "CUDA"]
    time_of_all = sum(event.time_range.elapsed_us() for event in on_gpu)
    return time_of_all / CALLS, round(len(on_gpu) / CALLS)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--block", choices=["Mamba", "Mamba2", "Linear"], help="only this one")
    parser.add_argument("--small", action="store_true", help="only batch 1")
    parser.add_argument("--train", action="store_true", help="whole steps, at the large sizes")
    parser.add_argument("--decode", action="store_true", help="one token, at batch 1")
    parser.add_argument("--count", action="store_true", help="functions that Python calls instead")
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--json", metavar="FILE", help="also write the rows there")
    chosen = parser.parse_args()
    rows = []
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    if chosen.count:
        for name in (chosen.block,) if chosen.block else ("Mamba", "Mamba2"):
            for size in (SMALL[1], LARGE[0]):
                for way, calls in count_rows(name, size):
                    print(f"{name} {size} {way}: {calls} calls", flush=True)
        return
    print("| block | B, L, d_model | way | call | CPU | GPU | kernels |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in (chosen.block,) if chosen.block else ("Mamba", "Mamba2"):
        sizes: tuple[tuple[int, int, int], ...]
        if chosen.decode:
            table, sizes = decoding_rows, SMALL[:1]
        elif chosen.train:
            table, sizes = training_rows, LARGE
        else:
            table, sizes = inference_rows, SMALL if chosen.small else SMALL + LARGE
        for size in sizes:
            for row in table(name, size, chosen.runs):
                rows.append(row)
                figures = (
                    [f"not measured: {row.failure}", "", "", ""]
                    if row.failure
                    else [f"{row.call:.0f}", f"{row.cpu:.0f}", f"{row.gpu:.0f}", str(row.kernels)]
                )
                cells = [row.block, ", ".join(map(str, size)), row.way, *figures]
                print(f"| {' | '.join(cells)} |", flush=True)
    for backend in jetson_mamba.status().backends:
        print(f"{backend.op} {backend.case}: {backend.backend}")
    if chosen.json:
        with open(chosen.json, "w", encoding="utf-8") as file:
            json.dump([dataclasses.asdict(row) for row in rows], file, indent=1)


if __name__ == "__main__":
    main()
