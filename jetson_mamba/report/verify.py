"""Holds the targets, as they run on this machine, to their recurrences in float64.

A row is one function of a target at one size and dtype, forward and backward. The reference gets
the same numbers, rounded to that dtype, so what is left is the error of the computation.
"""

from __future__ import annotations

import math
import re
from importlib import import_module
from typing import Any, Callable, Iterator, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.report import recurrences
from jetson_mamba.report.documents import VerifiedRow as Row

INTERFACE = "mamba_ssm.ops.selective_scan_interface"
COMBINED = "mamba_ssm.ops.triton.ssd_combined"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What a sound implementation keeps within. The functions round what lies between their parts to
# the dtype, so their errors are several of its units.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
# Triton's products of float32 matrices are in TF32, of 10 bits.
TOLERANCE_OF_TF32 = 5e-3
# As torch 2.0 says of half precision on a CPU, and oneDNN where torch 2.1 asks it for a product in
# 16 bits that a processor does not have, such as one for aarch64.
UNSUPPORTED = re.compile(
    r"not implemented for '(Half|BFloat16)'|could not create a primitive descriptor for a matmul"
)
RANK, D_MODEL, WIDTH, DSTATE, HEADDIM = 4, 24, 4, 16, 16


class Size(NamedTuple):
    """The size of a row."""

    batch: int
    dim: int
    seqlen: int


# A single step; a length that no block divides; several chunks.
SIZES = (Size(2, 32, 1), Size(2, 32, 35), Size(1, 64, 200))


class Function(NamedTuple):
    """A function of a target: its recurrence, what it is given, and which of that is a weight.

    Weights stay in float32 where upstream's modules keep them so.
    """

    name: str
    target: str
    reference: Callable[..., Tensor]
    arguments: Callable[[Size, Callable[..., Tensor]], dict[str, Tensor]]
    kept_in_float32: frozenset[str]
    call: Callable[[Any, dict[str, Tensor]], Tensor]


def functions() -> list[Function]:
    """The functions of the targets that the installed mamba_ssm has."""
    found = []
    for function in FUNCTIONS:
        try:
            import_module(function.target)
        except ModuleNotFoundError as error:
            if error.name is None or not function.target.startswith(error.name):
                raise
            continue  # mamba-ssm 1 has no Mamba-2
        found.append(function)
    return found


def rows(device: torch.device, chosen: list[Function]) -> Iterator[Row]:
    """A row for each function, size and dtype."""
    for function in chosen:
        for size in SIZES:
            for dtype in DTYPES:
                yield _row(function, size, dtype, device)


def row_count(chosen: list[Function]) -> int:
    """How many rows there will be."""
    return len(chosen) * len(SIZES) * len(DTYPES)


def _row(function: Function, size: Size, dtype: torch.dtype, device: torch.device) -> Row:
    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=source, dtype=torch.float64) * scale

    doubles, given = {}, {}
    for name, values in function.arguments(size, drawn).items():
        kept = torch.float32 if name in function.kept_in_float32 else dtype
        given[name] = values.to(device, kept).requires_grad_()
        doubles[name] = given[name].detach().to("cpu", torch.float64).requires_grad_()
    expected = function.reference(**doubles)
    weights = drawn(*expected.shape).to(dtype)
    tolerance = TOLERANCES[dtype]
    if device.type == "cuda" and function.target == COMBINED:
        tolerance = max(tolerance, TOLERANCE_OF_TF32)
    forward = backward = worst = failure = None
    try:
        out = function.call(import_module(function.target), given)
        forward = _error(out, expected)
        gradients = torch.autograd.grad(out, list(given.values()), weights.to(device, out.dtype))
        rights = torch.autograd.grad(expected, list(doubles.values()), weights.double())
        errors = {name: _error(*pair) for name, *pair in zip(given, gradients, rights)}
        worst = max(errors, key=lambda name: errors[name])
        backward = errors[worst]
    except Exception as error:  # what fails here fails in a model
        text = (str(error).strip() or "no message").splitlines()[0]
        failure = f"{type(error).__name__}: {text}"
    return Row(
        function.name,
        ", ".join(f"{name} {value}" for name, value in size._asdict().items()),
        str(dtype).rpartition(".")[2],
        _finite(forward),
        _finite(backward),
        worst,
        tolerance,
        failure is None
        and forward is not None
        and backward is not None
        and max(forward, backward) <= tolerance,
        failure,
        unsupported=failure is not None and UNSUPPORTED.search(failure) is not None,
    )


def _error(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference, relative to what is expected; infinite if it is not finite."""
    if found.shape != expected.shape:
        return math.inf
    difference = float((found.detach().to("cpu", torch.float64) - expected.detach()).norm())
    error = difference / max(float(expected.detach().norm()), torch.finfo(torch.float64).tiny)
    return error if math.isfinite(error) else math.inf


def _finite(error: float | None) -> float | None:
    """As JSON has it: no infinities."""
    return error if error is not None and math.isfinite(error) else None


def _scan_arguments(size: Size, drawn: Callable[..., Tensor]) -> dict[str, Tensor]:
    batch, dim, seqlen = size
    return {
        "u": drawn(*size),
        "delta": drawn(*size),
        "A": -drawn(dim, DSTATE).exp(),
        "B": drawn(batch, DSTATE, seqlen),
        "C": drawn(batch, DSTATE, seqlen),
        "D": drawn(dim),
        "z": drawn(*size),
        "delta_bias": drawn(dim),
    }


def _inner_arguments(size: Size, drawn: Callable[..., Tensor]) -> dict[str, Tensor]:
    batch, dim, seqlen = size
    return {
        "xz": drawn(batch, 2 * dim, seqlen),
        "conv1d_weight": drawn(dim, 1, WIDTH, scale=0.5),
        "conv1d_bias": drawn(dim),
        "x_proj_weight": drawn(RANK + 2 * DSTATE, dim, scale=dim**-0.5),
        "delta_proj_weight": drawn(dim, RANK, scale=RANK**-0.5),
        "out_proj_weight": drawn(D_MODEL, dim, scale=dim**-0.5),
        "A": -drawn(dim, DSTATE).exp(),
        "D": drawn(dim),
        "delta_bias": drawn(dim),
    }


def _chunk_arguments(size: Size, drawn: Callable[..., Tensor]) -> dict[str, Tensor]:
    batch, dim, seqlen = size
    nheads = dim // HEADDIM
    return {
        "x": drawn(batch, seqlen, nheads, HEADDIM),
        "dt": drawn(batch, seqlen, nheads),
        "A": -drawn(nheads).exp(),
        "B": drawn(batch, seqlen, 1, DSTATE),
        "C": drawn(batch, seqlen, 1, DSTATE),
        "D": drawn(nheads),
        "z": drawn(batch, seqlen, nheads, HEADDIM),
        "dt_bias": drawn(nheads),
    }


def _split_arguments(size: Size, drawn: Callable[..., Tensor]) -> dict[str, Tensor]:
    batch, dim, seqlen = size
    nheads, channels = dim // HEADDIM, dim + 2 * DSTATE
    return {
        "zxbcdt": drawn(batch, seqlen, dim + channels + nheads),
        "conv1d_weight": drawn(channels, WIDTH, scale=0.5),
        "conv1d_bias": drawn(channels),
        "dt_bias": drawn(nheads),
        "A": -drawn(nheads).exp(),
        "D": drawn(nheads),
        "rmsnorm_weight": drawn(dim),
        "outproj_weight": drawn(D_MODEL, dim, scale=dim**-0.5),
    }


def _call_scan(module: Any, given: dict[str, Tensor]) -> Tensor:
    out: Tensor = module.selective_scan_fn(**given, delta_softplus=True)
    return out


def _call_inner(module: Any, given: dict[str, Tensor]) -> Tensor:
    out: Tensor = module.mamba_inner_fn(**given, out_proj_bias=None, delta_softplus=True)
    return out


def _call_chunk(module: Any, given: dict[str, Tensor]) -> Tensor:
    out: Tensor = module.mamba_chunk_scan_combined(**given, chunk_size=64, dt_softplus=True)
    return out


def _call_split(module: Any, given: dict[str, Tensor]) -> Tensor:
    out: Tensor = module.mamba_split_conv1d_scan_combined(
        **given, chunk_size=64, rmsnorm_eps=1e-5, headdim=HEADDIM, norm_before_gate=False
    )
    return out


_STATE_SPACE = frozenset(("A", "D", "delta_bias", "dt_bias"))
FUNCTIONS = (
    Function(
        "selective_scan_fn",
        INTERFACE,
        recurrences.selective_scan,
        _scan_arguments,
        _STATE_SPACE,
        _call_scan,
    ),
    Function(
        "mamba_inner_fn",
        INTERFACE,
        recurrences.mamba_inner,
        _inner_arguments,
        _STATE_SPACE,
        _call_inner,
    ),
    Function(
        "mamba_chunk_scan_combined",
        COMBINED,
        recurrences.chunk_scan,
        _chunk_arguments,
        _STATE_SPACE,
        _call_chunk,
    ),
    Function(
        "mamba_split_conv1d_scan_combined",
        COMBINED,
        recurrences.split_conv1d_scan,
        _split_arguments,
        _STATE_SPACE,
        _call_split,
    ),
)
