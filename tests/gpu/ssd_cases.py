"""Prints how far ssd's CUDA kernels are off, for scans of every kind that they tell apart.

``python -m tests.gpu.ssd_cases [NAME...]`` prints a line for each case.
"""

from __future__ import annotations

import math
import os
import sys
from typing import Any

import torch
from torch import Tensor

from jetson_mamba.ops.ssd.contract import Scan
from tests.references.ssd import ssd_scan
from tests.references.tolerance import relative_norm

HALF, BRAIN, FLOAT = torch.float16, torch.bfloat16, torch.float32
EVERYTHING: dict[str, Any] = {
    **{"batch": 2, "seqlen": 200, "heads": 4, "groups": 2, "D": "channels"},
    **{"z": True, "first": True, "packed": True},
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain fp16": {"dtype": HALF},
    "plain fp32": {"dtype": FLOAT},
    "everything": EVERYTHING,
    "everything fp16": {**EVERYTHING, "dtype": HALF},
    "everything fp32": {**EVERYTHING, "dtype": FLOAT},
    "one step": {"seqlen": 1, "first": True},
    "a chunk": {"seqlen": 64},
    "no D, no softplus, limits": {
        **{"softplus": False, "bias": False, "D": None},
        "limit": (0.05, 0.15),
    },
    "odd sizes": {"headdim": 20, "dstate": 10, "seqlen": 70, "first": True},
    "odd sizes fp32": {"headdim": 20, "dstate": 10, "seqlen": 70, "dtype": FLOAT, "first": True},
    "three and five": {"headdim": 3, "dstate": 5, "seqlen": 70, "dtype": HALF, "z": True},
    "two slices": {"headdim": 80, "dstate": 24, "seqlen": 130, "first": True, "D": "channels"},
    "many states": {"dstate": 256, "seqlen": 130},
    "many states fp32": {"dstate": 200, "seqlen": 70, "dtype": FLOAT},
    "not aligned": {"shift": 1, "seqlen": 130, "z": True},
    "parts of one tensor": {"together": True, "seqlen": 130},
    "mixed dtypes": {"dtype": BRAIN, "dtype_of_B": FLOAT, "seqlen": 70},
    "stiff": {"stiff": True},
    "stiff fp32": {"stiff": True, "dtype": FLOAT},
}


def drawn(
    batch: int = 1,
    seqlen: int = 150,
    heads: int = 2,
    groups: int = 1,
    headdim: int = 64,
    dstate: int = 128,
    dtype: torch.dtype = BRAIN,
    dtype_of_B: torch.dtype | None = None,
    D: str | None = "heads",
    z: bool = False,
    first: bool = False,
    packed: bool = False,
    bias: bool = True,
    softplus: bool = True,
    limit: tuple[float, float] = (0.0, math.inf),
    shift: int = 0,
    together: bool = False,
    stiff: bool = False,
    device: str = "cpu",
) -> Scan:
    """Random arguments, the same on every device."""
    torch.manual_seed(0)

    def rows(*shape: int, scale: float = 1.0) -> Tensor:
        numbers = (torch.randn(*shape, shape_last + shift) * scale).to(dtype).to(device)
        return numbers[..., shift:]

    shape_last = headdim
    x = rows(batch, seqlen, heads)
    gate = rows(batch, seqlen, heads) if z else None
    shape_last = heads
    dt = rows(batch, seqlen, scale=0.5) - 1
    shape_last = dstate
    B, C = rows(batch, seqlen, groups), rows(batch, seqlen, groups)
    if together:
        whole = torch.cat([x.flatten(2), B.flatten(2), C.flatten(2), dt], -1)
        parts = whole.split([heads * headdim, groups * dstate, groups * dstate, heads], -1)
        x = parts[0].unflatten(-1, (heads, headdim))
        B, C = (part.unflatten(-1, (groups, dstate)) for part in parts[1:3])
        dt = parts[3]
    A = -torch.rand(heads) * 2 - 0.1
    if not softplus:
        dt = dt.abs() * 0.2
    if stiff:
        A = torch.tensor([-1e-6, -1e4][:heads])
        dt = (torch.logspace(-3, 1, seqlen) * (0.5 + 0.5 * torch.rand(batch, seqlen)))[..., None]
        dt = dt.expand(batch, seqlen, heads).to(dtype).to(device).log()
    sequences = None
    if packed:
        sequences = (torch.arange(seqlen) // 37).expand(batch, seqlen).clone().int()
        sequences[:, seqlen // 2 : seqlen // 2 + 5] = -1
        sequences = sequences.to(device)
    return Scan(
        x,
        dt,
        A.to(device),
        B if dtype_of_B is None else B.to(dtype_of_B),
        C,
        None
        if D is None
        else torch.randn(heads, *([headdim] if D == "channels" else [])).to(device),
        gate,
        (torch.rand(heads) - 0.5).to(device) if bias else None,
        torch.randn(batch, heads, headdim, dstate).to(device) if first else None,
        sequences,
        None,
        64,
        softplus,
        limit,
    )


def reference(scan: Scan, leaves: list[Tensor | None]) -> tuple[Tensor, Tensor]:
    """Output and last state, step after step."""
    x, dt, A, B, C, D, z, dt_bias, first = leaves
    assert x is not None and dt is not None and A is not None and B is not None and C is not None
    out, state, _ = ssd_scan(
        *(x, dt, A, B, C),
        D=D,
        z=z,
        dt_bias=dt_bias,
        initial_states=first,
        seq_idx=None if scan.seq_idx is None else scan.seq_idx.long().cpu(),
        dt_softplus=scan.dt_softplus,
        dt_limit=scan.dt_limit,
    )
    return out, state


def doubled(scan: Scan) -> list[Tensor | None]:
    """The tensors of a scan in float64, on the CPU, to be differentiated."""
    return [
        None if each is None else each.detach().cpu().double().requires_grad_() for each in scan[:9]
    ]


def forward_errors(scan: Scan) -> dict[str, tuple[float, float]]:
    """Of output and last state: the relative norm of the error, and of the result's rounding."""
    from jetson_mamba.ops.ssd import cuda_forward

    out, state = cuda_forward.forward(scan)
    with torch.no_grad():
        expected, last = reference(scan, doubled(scan))
    return {
        "out": (relative_norm(out, expected), relative_norm(expected.to(out.dtype), expected)),
        "state": (relative_norm(state, last), 0.0),
    }


def backward_errors(scan: Scan) -> dict[str, tuple[float, float]]:
    """The same of the gradients of a weighted sum of both results."""
    from jetson_mamba.ops.ssd import cuda_backward

    scan = scan._replace(z=None)
    leaves = doubled(scan)
    out, state = reference(scan, leaves)
    torch.manual_seed(1)
    # Of as many digits as the output has, in every dtype.
    dout = torch.randn(out.shape).to(scan.x.dtype)
    dstate = torch.randn(state.shape)
    given = {name: leaf for name, leaf in zip(Scan._fields, leaves) if leaf is not None}
    total = (out * dout).sum() + (state * dstate).sum()
    expected = dict(zip(given, torch.autograd.grad(total, list(given.values()))))
    found = cuda_backward.backward(scan, dout.to(scan.x.device), dstate.to(scan.x.device))._asdict()
    return {
        f"d{name}": (
            relative_norm(found[name], value),
            relative_norm(value.to(found[name].dtype), value),
        )
        for name, value in expected.items()
    }


def main() -> None:
    """Print the table."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    both = (forward_errors, backward_errors)
    for name in sys.argv[1:] or CASES:
        found: dict[str, tuple[float, float]] = {}
        for errors in both[1:] if os.environ.get("PASS") == "backward" else both:
            found.update(errors(drawn(**CASES[name], device=device)))
        line = " ".join(f"{key} {error:.1e}/{least:.1e}" for key, (error, least) in found.items())
        print(f"{name}: {line}", flush=True)


if __name__ == "__main__":
    main()
