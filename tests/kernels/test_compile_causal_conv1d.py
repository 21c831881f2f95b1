"""Every kernel of the convolution compiles, without spills and within its shared memory.

Of each kernel's form any two of dtype, width and flags meet, in a variant that is compiled for one
of the architectures, and the heaviest for every second one, so that both neighbours of an
architecture have those that it has not. All variants for all architectures take minutes: `make
kernels`.
"""

from __future__ import annotations

import itertools
import os
from typing import Any, Iterator, NamedTuple

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import NUMBERS
from jetson_mamba.ops.causal_conv1d import cuda
from jetson_mamba.ops.causal_conv1d.contract import Case

ARCHITECTURES = ("sm_72", "sm_80", "sm_87", "sm_90", "sm_110")
STATIC_SHARED_BYTES = 48 * 1024
EVERY = "EVERY_KERNEL" in os.environ


class Variant(NamedTuple):
    """One way to specialise one kernel."""

    dtype: torch.dtype
    width: int
    kind: str
    sequences: bool
    states: bool
    form: tuple[int, ...]

    def label(self) -> str:
        """Short, for the report of a failure."""
        return f"{self.kind} {tuple(self.form)} {self.dtype} width {self.width}" + (
            f" seq_idx={self.sequences} states={self.states}"
        )


def variants() -> Iterator[Variant]:
    """What the backend may ask for, with SiLU and weights of the input's dtype: all, or a third."""
    flags = list(itertools.product((False, True), repeat=2))
    pairs = itertools.product(enumerate(NUMBERS), enumerate(cuda.WIDTHS))
    for (row, dtype), (column, width) in pairs:
        yield Variant(dtype, width, "sum", False, False, ())
        yield Variant(dtype, width, "update", False, False, ())
        forms: list[tuple[str, tuple[int, ...]]] = [
            ("forward_channels", cuda.FORWARD_WALK[dtype]),
            ("forward_channels", cuda.GENERAL_FORWARD),
            ("backward_channels", cuda.BACKWARD_WALK[dtype]),
            ("backward_channels", cuda.GENERAL_BACKWARD),
        ]
        for aligned in (0, 1):
            forms.append(("forward_time", (aligned, cuda.FORWARD_BLOCKS[dtype])))
            forms.append(("backward_time", (aligned, cuda.BACKWARD_BLOCKS)))
        for kind, form in forms:
            for place, (sequences, states) in enumerate(flags):
                variant = Variant(dtype, width, kind, sequences, states, form)
                # One of the four, another for the next dtype and the next width.
                if EVERY or (row + column) % 4 == place or is_heavy(variant):
                    yield variant


def is_heavy(variant: Variant) -> bool:
    """Those with the most to hold, and those whose registers are bounded the tightest."""
    return variant.width == 4 and variant.sequences == variant.states


def test_any_two_choices_of_a_form_meet() -> None:
    choices = (NUMBERS, cuda.WIDTHS, (False, True), (False, True))
    wanted = set()
    for places in itertools.combinations(range(4), 2):
        for two in itertools.product(*(choices[place] for place in places)):
            wanted.add((places, two))
    found: dict[tuple[Any, ...], set[Any]] = {}
    for each in variants():
        if each.form:
            chosen = (each.dtype, each.width, each.sequences, each.states)
            # What of a form is the same for every dtype.
            met = found.setdefault((each.kind, each.form[0]), set())
            for places in itertools.combinations(range(4), 2):
                met.add((places, tuple(chosen[place] for place in places)))
    assert len(found) == 8
    assert all(met == wanted for met in found.values())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_without_spills_and_within_shared_memory(architecture: str) -> None:
    try:
        known = [each for each in ARCHITECTURES if each in compiler.supported_architectures()]
    except Unavailable as reason:
        pytest.skip(str(reason))
    if architecture not in known:
        pytest.skip(f"NVRTC {compiler.nvrtc_version()} does not compile for {architecture}")
    turn = known.index(architecture)
    failures = []
    for number, variant in enumerate(variants()):
        is_its_turn = EVERY or number % len(known) == turn
        if not is_its_turn and not (is_heavy(variant) and number // 2 % 2 == turn % 2):
            continue
        case = Case(torch.device("cuda", 0), variant.dtype, variant.dtype, variant.width)
        name, defines = cuda.variant(
            case, variant.kind, True, variant.sequences, variant.states, variant.form
        )
        compiled = compiler.compile_source(f"{name}.cu", name, defines, architecture)
        if compiled.spill_bytes or compiled.static_shared_bytes > STATIC_SHARED_BYTES:
            failures.append(
                f"{variant.label()}: {compiled.spill_bytes} bytes spilled, "
                f"{compiled.static_shared_bytes} bytes of shared memory"
            )
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize("dtype", NUMBERS)
def test_weights_of_another_dtype_and_no_activation_compile(dtype: torch.dtype) -> None:
    try:
        architecture = sorted(compiler.supported_architectures())[0]
    except Unavailable as reason:
        pytest.skip(str(reason))
    case = Case(torch.device("cuda", 0), dtype, torch.float32, 4)
    for kind, form in (
        ("forward_time", (1, cuda.FORWARD_BLOCKS[dtype])),
        ("backward_time", (1, cuda.BACKWARD_BLOCKS)),
        ("forward_channels", cuda.GENERAL_FORWARD),
        ("backward_channels", cuda.GENERAL_BACKWARD),
        ("update", ()),
        ("sum", ()),
    ):
        name, defines = cuda.variant(case, kind, False, False, False, form)
        compiled = compiler.compile_source(f"{name}.cu", name, defines, architecture)
        assert compiled.cubin.startswith(b"\x7fELF")
