"""Every kernel of norms, of the gate or of decoding steps compiles, without spills.

Each choice is compiled for one architecture, and the heaviest for all: the product would take
minutes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import NUMBERS
from jetson_mamba.ops.decoding import cuda as decoding
from jetson_mamba.ops.decoding.contract import Case
from jetson_mamba.ops.norms import cuda as norms
from jetson_mamba.ops.norms.contract import Gate, Options
from jetson_mamba.ops.swiglu import cuda as swiglu

ARCHITECTURES = ("sm_72", "sm_80", "sm_87", "sm_90", "sm_110")
NARROW, WIDE = torch.bfloat16, torch.float32


def compiled(name: str, defines: tuple[tuple[str, str], ...], architecture: str) -> None:
    try:
        found = compiler.compile_source(f"{name}.cu", name, defines, architecture)
    except Unavailable as error:
        pytest.skip(str(error))
    assert found.spill_bytes == 0, (name, defines)
    threads = dict(defines).get("THREADS", "128")
    assert int(threads) * int(dict(defines).get("ROWS", "1")) <= 1024
    assert found.static_shared_bytes <= 48 * 1024


def span(group: int, vector: int, is_backward: bool, few: bool = False) -> norms.Span:
    found = norms.span_of(group, vector, 4096, is_backward, few)
    assert found is not None
    return found


def forward(group: int, vector: int, gate: Gate, few: bool = False, **others: Any) -> Any:
    options = Options(1e-5, group, others.pop("is_rms_norm", True), gate)
    dtype = others.pop("dtype", NARROW)
    total = others.pop("total", dtype)
    adds = others.pop("adds", False)
    return norms.forward_defines(
        span(group, vector, False, few),
        options,
        dtype,
        total,
        total,
        dtype,
        WIDE,
        adds=adds,
        keeps=adds,
    )


def backward(group: int, vector: int, gate: Gate, few: bool = False, **others: Any) -> Any:
    options = Options(1e-5, group, others.pop("is_rms_norm", False), gate)
    dtype = others.pop("dtype", NARROW)
    source = others.pop("source", dtype)
    return norms.backward_defines(
        *(span(group, vector, True, few), options, source, dtype, source, dtype, WIDE),
        has_bias=True,
        has_dtotal=source != dtype,
        splits=source != dtype,
    )


@pytest.mark.parametrize("vector", [1, 8])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_gate_compiles_for_every_architecture(architecture: str, vector: int) -> None:
    for name, outputs in (("swiglu_forward", False), ("swiglu_backward", True)):
        defines = swiglu.defines_of(NARROW, vector, outputs)
        try:
            found = compiler.compile_source("swiglu.cu", name, defines, architecture)
        except Unavailable as error:
            pytest.skip(str(error))
        assert found.spill_bytes == 0


def test_runs_of_the_gate_lie_at_whole_accesses_of_every_tensor() -> None:
    xy, out = torch.empty(3, 2 * 24, dtype=NARROW), torch.empty(3, 24 + 8, dtype=NARROW)
    assert swiglu.vector_of((xy, out[:, 8:]), 24) == 8
    assert swiglu.vector_of((xy, None, out[:, 4:28]), 24) == 4
    assert swiglu.vector_of((xy, out[:, 1:25]), 24) == 1
    assert swiglu.vector_of((xy[:, :44], out), 22) == 2
    assert swiglu.vector_of((torch.empty(3, 13), xy), 1) == 1
    assert swiglu.vector_of((torch.empty(3, 64),), 32) == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_heaviest_kernels_compile_for_every_architecture(architecture: str) -> None:
    # A group of a thread's most elements with a gate and a bias; and beside a sum in float32.
    for group in (6144, 8192):
        compiled("norm_backward", backward(group, 8, Gate.OUTPUT), architecture)
    compiled("norm_backward", backward(6144, 8, Gate.NONE, source=WIDE), architecture)
    compiled("norm_forward", forward(16384, 8, Gate.OUTPUT, is_rms_norm=False), architecture)
    compiled("norm_sum", (("WEIGHT", "bfloat16_t"),), architecture)
    case = Case(torch.device("cuda"), WIDE, NARROW, NARROW, WIDE)
    for tied, vector, lanes, rounds in ((True, 4, 32, 1), (False, 4, 4, 1), (False, 4, 32, 8)):
        rows, tiles = (decoding.ROWS, decoding.TILES) if lanes == 32 else (2, 2)
        rows, tiles = (rows, tiles) if rounds == 1 else (1, 1)
        form = decoding.Form(True, tied, vector, lanes, rounds, rows, tiles)
        compiled(*decoding.variant(case, form, None), architecture)


@pytest.mark.parametrize("gate", Gate)
@pytest.mark.parametrize("dtype", NUMBERS)
def test_norms_compile_for_each_dtype_and_gate(dtype: torch.dtype, gate: Gate) -> None:
    vector = 16 // torch.empty((), dtype=dtype).element_size()
    compiled("norm_forward", forward(1536, vector, gate, dtype=dtype), "sm_87")
    compiled("norm_backward", backward(1536, vector, gate, dtype=dtype), "sm_87")


@pytest.mark.parametrize("vector", [1, 2, 4, 8])
@pytest.mark.parametrize("few", [False, True])
def test_norms_compile_for_each_length_and_alignment(vector: int, few: bool) -> None:
    longest = norms.LONGEST_ODD if vector == 1 else norms.LONGEST_BACKWARD
    for group in (vector, 40 * vector, 1536, longest):
        compiled("norm_backward", backward(group, vector, Gate.INPUT, few), "sm_87")
    for group in (vector, 1536, norms.LONGEST_FORWARD):
        compiled(
            "norm_forward", forward(group, vector, Gate.NONE, few, total=WIDE, adds=True), "sm_87"
        )


@pytest.mark.parametrize("state", NUMBERS)
@pytest.mark.parametrize("tied", [False, True])
def test_steps_compile_for_each_dtype_of_the_state(state: torch.dtype, tied: bool) -> None:
    case = Case(torch.device("cuda"), state, NARROW, NARROW, WIDE)
    most = (decoding.ROWS, decoding.TILES)
    for vector, lanes, rounds, rows, tiles in (
        *((4, 32, 1, *most), (4, 4, 1, decoding.ROWS, 1)),
        *((1, 32, 8, 1, 1), (1, 1, 1, 1, 1)),
    ):
        form = decoding.Form(True, tied, vector, lanes, rounds, rows, tiles)
        indices = torch.zeros(1, dtype=torch.int64)
        compiled(*decoding.variant(case, form, indices), "sm_87")
