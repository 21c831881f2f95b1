"""Mamba-3's scan on a GPU: upstream's kernels beside this project's own way.

Prints how far both are from the recurrence's own result in float32, and the milliseconds of a
forward pass and of one with its backward pass. ``python -m benchmarks.mamba3 [SEQLEN]``, with
mamba-ssm 2.3.2.post1 or later.
"""

from __future__ import annotations

import importlib
import statistics
import sys
from typing import Any, Callable

import torch
from torch import Tensor

import jetson_mamba  # noqa: F401 - activates the overrides
from jetson_mamba import ops

# A block of a model with 2048 channels.
BATCH, NHEADS, HEADDIM, DSTATE, ANGLES = 2, 64, 64, 128, 32


def arguments(seqlen: int, device: torch.device, rank: int = 0) -> dict[str, Any]:
    """What a block gives the scan, for ``rank`` inputs a step if there are several."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device)

    torch.manual_seed(0)
    ranks = (rank,) if rank else ()
    dt = 0.1 * torch.rand(BATCH, NHEADS, seqlen, device=device)
    given = {
        "Q": normal(BATCH, seqlen, *ranks, 1, DSTATE).bfloat16(),
        "K": normal(BATCH, seqlen, *ranks, 1, DSTATE).bfloat16(),
        "V": normal(BATCH, seqlen, NHEADS, HEADDIM).bfloat16(),
        "ADT": -dt * torch.rand(BATCH, NHEADS, seqlen, device=device),
        "DT": dt,
        "Trap": normal(BATCH, NHEADS, seqlen).bfloat16(),
        "Q_bias": 1 + 0.1 * normal(NHEADS, *ranks, DSTATE),
        "K_bias": 1 + 0.1 * normal(NHEADS, *ranks, DSTATE),
        "Angles": normal(BATCH, seqlen, NHEADS, ANGLES).bfloat16(),
        "D": normal(NHEADS),
        "Z": normal(BATCH, seqlen, NHEADS, HEADDIM).bfloat16(),
    }
    return {name: each.requires_grad_() for name, each in given.items()}


def milliseconds(call: Callable[[], Any], device: torch.device) -> float:
    """The median of several runs, after some for compilers and tuners."""
    found: list[float] = []
    for number in range(15):
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            found.append(start.elapsed_time(end))
        else:
            import time

            begun = time.perf_counter()
            call()
            found.append(1e3 * (time.perf_counter() - begun))
        if number == 4:
            found.clear()
    return statistics.median(found)


def row(name: str, call: Callable[..., Any], given: dict[str, Any], exact: Tensor) -> None:
    """Print a way's error and times."""
    device = exact.device

    def forward() -> Any:
        with torch.no_grad():
            return call(**given)

    def train() -> None:
        out = call(**given)
        leaves = [each for each in given.values() if isinstance(each, Tensor)]
        torch.autograd.grad(out, leaves, torch.ones_like(out))

    error = float((forward().double() - exact).norm() / exact.norm())
    print(
        f"{name:28} error {error:.1e}  forward {milliseconds(forward, device):8.2f} ms  "
        f"with backward {milliseconds(train, device):8.2f} ms"
    )


def main(seqlen: int) -> None:
    """Print the table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module: Any = importlib.import_module("mamba_ssm.ops.triton.mamba3.mamba3_siso_combined")
    given = arguments(seqlen, device)
    wide = {name: each.detach().float() for name, each in given.items()}
    op: Callable[..., Any] = ops.mamba3_siso_combined
    with torch.no_grad():
        exact = op(**wide)
    print(
        f"seqlen {seqlen} on {torch.cuda.get_device_name() if device.type == 'cuda' else 'a CPU'}"
    )
    row("one input: upstream's name", module.mamba3_siso_combined, given, exact.double())
    row("one input: jetson_mamba", op, given, exact.double())
    several: dict[str, Any] = arguments(seqlen, device, rank=4)
    for name in ("MIMO_V", "MIMO_Z", "MIMO_Out"):
        several[name] = torch.rand(NHEADS, 4, HEADDIM, device=device).requires_grad_()
    options: dict[str, Any] = {
        "chunk_size": 16,
        "rotary_dim_divisor": DSTATE // ANGLES,
        "dtype": torch.bfloat16,
    }
    wide = {name: each.detach().float() for name, each in several.items()}
    several_op: Callable[..., Any] = ops.mamba3_mimo
    with torch.no_grad():
        exact = several_op(**wide, **{**options, "dtype": torch.float32})
    module = importlib.import_module("mamba_ssm.ops.tilelang.mamba3.mamba3_mimo")
    several.update(options)
    row("four inputs: upstream's name", module.mamba3_mimo, several, exact.double())
    row("four inputs: jetson_mamba", several_op, several, exact.double())


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2048)
