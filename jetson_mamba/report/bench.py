"""Times every backend of the ops on a device, beside the least time that their bytes take.

A case is an op at one size, dtype and layout. It is called as a model calls it, through the public
functions of ``jetson_mamba.ops``, once for each backend that is available: the convolution with
width 4, bias and SiLU, the selective scan with 16 states, D, z, delta_bias and softplus.
"""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from importlib import metadata
from typing import Any, Callable, Dict, NamedTuple, Sequence

import torch
from torch import Tensor

import jetson_mamba
from jetson_mamba.dispatch.backends import first_line
from jetson_mamba.dispatch.selection import OPS
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.ops import (
    causal_conv1d_bwd,
    causal_conv1d_fn,
    selective_scan_bwd,
    selective_scan_fwd,
)
from jetson_mamba.report.documents import TimedBackend as Backend
from jetson_mamba.report.documents import TimedRow as Row
from jetson_mamba.report.documents import Timings as Result
from jetson_mamba.report.machine import driver
from jetson_mamba.report.timing import Timer

WIDTH, DSTATE = 4, 16
# By torch's names, as everywhere; the short ones are understood.
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
SHORT = {"bf16": "bfloat16", "fp32": "float32"}
# Tensors of (batch, dim, seqlen) that a pass reads or writes once. The convolution: x, out; x,
# dout, dx. The scan: u, delta, z, out, the gated out; u, delta, z, dout, out, du, ddelta, dz.
LEAST_TENSORS = {
    ("causal_conv1d", "forward"): 2,
    ("causal_conv1d", "backward"): 3,
    ("selective_scan", "forward"): 5,
    ("selective_scan", "backward"): 8,
}
# The distribution whose release a backend depends on.
DISTRIBUTIONS = {
    ("causal_conv1d", "package"): "causal-conv1d",
    ("causal_conv1d", "extension"): "causal-conv1d",
    ("selective_scan", "extension"): "mamba-ssm",
}


class Size(NamedTuple):
    """The size of a case."""

    batch: int
    dim: int
    seqlen: int


# The scan on a CPU takes time with each step and channel, so that its sizes are small.
_CPU_SIZES = (Size(1, 64, 256), Size(2, 256, 512))
_GPU_SIZES = (Size(1, 1536, 2048), Size(8, 1536, 2048), Size(4, 5120, 4096))
SIZES = {
    ("causal_conv1d", "cuda"): _GPU_SIZES,
    ("selective_scan", "cuda"): (Size(1, 1536, 256), *_GPU_SIZES),
    ("causal_conv1d", "cpu"): _CPU_SIZES,
    ("selective_scan", "cpu"): _CPU_SIZES,
}
# BDL: (batch, dim, seqlen) contiguous, as Mamba-1 calls; BLD: channel-last, as Mamba-2 calls.
LAYOUTS = {"causal_conv1d": ("BDL", "BLD"), "selective_scan": ("BDL",)}


class Case(NamedTuple):
    """An op at one size, dtype and layout."""

    op: str
    size: Size
    dtype: str
    layout: str


class Run:
    """One run on a device. Making it measures the copy and finds out what is available.

    ``rep`` is the milliseconds spent on each time; ``cases`` are what there is to measure.
    """

    def __init__(
        self, device: torch.device, ops: Sequence[str], dtypes: Sequence[str], rep: float
    ) -> None:
        self._timer = Timer(device)
        self._rep = rep
        self._copy_rate = self._timer.copy_rate()
        self._unavailable = {
            (op, dtype): _unavailable(op, dtype, device) for op in ops for dtype in dtypes
        }
        self.cases = [
            Case(op, size, dtype, layout)
            for op in ops
            for size in SIZES[op, device.type]
            for dtype in dtypes
            for layout in LAYOUTS[op]
        ]

    def rows(self, case: Case) -> list[Row]:
        """Forward and backward of a case, each by every backend that is available."""
        missing = self._unavailable[case.op, case.dtype]
        times: dict[str, dict[str, float]] = {"forward": {}, "backward": {}}
        failures: dict[str, dict[str, str]] = {"forward": {}, "backward": {}}
        for name in (each for each in OPS[case.op].order if each not in missing):
            with jetson_mamba.backend(**{case.op: name}):
                for direction, taken in times.items():
                    try:
                        call = _PASSES[case.op](case, self._timer.device)[direction]
                        taken[name] = self._timer.microseconds(call, self._rep)
                    except torch.cuda.OutOfMemoryError:
                        failures[direction][name] = "out of memory"
                    except Exception as error:  # what fails here fails in a model
                        failures[direction][name] = f"{type(error).__name__}: {first_line(error)}"
        return [self._row(case, *each, failures[each[0]]) for each in times.items()]

    def result(self, rows: Sequence[Row]) -> Result:
        """The rows, with what they were measured on."""
        device = self._timer.device
        on_gpu = device.type == "cuda"
        backends: dict[tuple[str, str], dict[str, str]] = {}
        for (op, dtype), missing in self._unavailable.items():
            for name in OPS[op].order:
                reasons = backends.setdefault((op, name), {})
                if name in missing:
                    reasons[dtype] = missing[name]
        return Result(
            device=device.type,
            name=torch.cuda.get_device_name(device)
            if on_gpu
            else f"CPU, {torch.get_num_threads()} threads",
            jetson_mamba=jetson_mamba.__version__,
            torch=str(torch.__version__),
            cuda=torch.version.cuda,
            driver=driver() if on_gpu else None,
            copy_rate=self._copy_rate,
            backends=tuple(
                Backend(op, name, _release(op, name), reasons)
                for (op, name), reasons in backends.items()
            ),
            rows=tuple(rows),
        )

    def _row(
        self, case: Case, direction: str, times: dict[str, float], failures: dict[str, str]
    ) -> Row:
        element = torch.empty((), dtype=DTYPES[case.dtype]).element_size()
        tensors = LEAST_TENSORS[case.op, direction]
        floor = tensors * math.prod(case.size) * element / self._copy_rate
        return Row(
            case.op,
            direction,
            *case.size,
            case.dtype,
            case.layout,
            floor,
            times,
            failures,
            floor / min(times.values()) if times else None,
        )


def _unavailable(op: str, dtype: str, device: torch.device) -> dict[str, str]:
    """The backends of an op that do not serve a dtype on a device, and why."""
    reasons = {}
    for name in OPS[op].order:
        with jetson_mamba.backend(**{op: name}):
            try:
                for call in _PASSES[op](Case(op, Size(1, 8, 16), dtype, "BDL"), device).values():
                    call()
            except Exception as error:  # whatever a broken extension raises
                reasons[name] = first_line(error.__cause__ or error)
    return reasons


def _release(op: str, backend: str) -> str:
    """What a backend is made of, with versions; "not on record" where nothing tells."""
    if backend == "pytorch":
        return f"torch {torch.__version__}"
    if backend == "cuda":
        with suppress(Unavailable, metadata.PackageNotFoundError):
            return (
                f"jetson-mamba {jetson_mamba.__version__}, NVRTC {compiler.nvrtc_version()}, "
                f"cuda-core {metadata.version('cuda-core')}"
            )
    if (op, backend) in DISTRIBUTIONS:
        with suppress(metadata.PackageNotFoundError):
            name = DISTRIBUTIONS[op, backend]
            return f"{name} {metadata.version(name)}"
    return "not on record"


Passes = Dict[str, Callable[[], Any]]


def _convolution(case: Case, device: torch.device) -> Passes:
    batch, dim, seqlen = case.size
    drawn = _source(case, device)

    def sequence() -> Tensor:
        if case.layout == "BDL":
            return drawn(batch, dim, seqlen)
        return drawn(batch, seqlen, dim).transpose(1, 2)

    x, weight, bias, dout = sequence(), drawn(dim, WIDTH), drawn(dim), sequence()
    dx = torch.empty_like(x)
    return {
        "forward": partial(causal_conv1d_fn, x, weight, bias, activation="silu"),
        "backward": partial(causal_conv1d_bwd, x, weight, bias, dout, dx=dx, activation="silu"),
    }


def _scan(case: Case, device: torch.device) -> Passes:
    batch, dim, seqlen = case.size
    drawn = _source(case, device)
    u, delta, z, dout = (drawn(batch, dim, seqlen) for _ in range(4))
    B, C = (drawn(batch, 1, DSTATE, seqlen) for _ in range(2))
    A = -torch.arange(1.0, DSTATE + 1, device=device).repeat(dim, 1)
    D, delta_bias = torch.ones(dim, device=device), torch.full((dim,), -2.0, device=device)
    scan = (u, delta, A, B, C, D, z, delta_bias)
    out, x, _ = selective_scan_fwd(*scan, True)
    return {
        "forward": partial(selective_scan_fwd, *scan, True),
        "backward": partial(selective_scan_bwd, *scan, dout, x, out, None, True, False),
    }


_PASSES: dict[str, Callable[[Case, torch.device], Passes]] = {
    "causal_conv1d": _convolution,
    "selective_scan": _scan,
}


def _source(case: Case, device: torch.device) -> Callable[..., Tensor]:
    """Normal random numbers in the case's dtype, the same for every backend."""
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=DTYPES[case.dtype])

    return drawn
