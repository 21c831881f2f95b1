"""Every kernel of the ssd op compiles.

It does so with few spills and within a block's shared memory. All architectures for the sizes of
most models; of the other sizes and flags one each, and more of their product by `make kernels`. The
kernels count their shared memory themselves: one that the host counts otherwise does not compile.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import pytest
import torch

from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import NUMBERS
from jetson_mamba.ops.ssd.cuda import MOST_STATES
from jetson_mamba.ops.ssd.cuda_forward import Variant
from tests.kernels.test_compile_selective_scan import skip_unless_supported

# What a block may have of shared memory.
ROOM = {"sm_80": 163, "sm_87": 163, "sm_90": 227, "sm_100": 227, "sm_110": 227, "sm_120": 99}
# Bytes, of a thread, that are stored or loaded anywhere in a kernel: pointers that are read once a
# chunk. More is a variant that was not looked at.
MOST_SPILLED = 256
EVERY = "EVERY_KERNEL" in os.environ
KERNELS = ("ssd_forward", "ssd_states", "ssd_pass", "ssd_backward", "ssd_sums")
USUAL = Variant(torch.bfloat16, 64, 128, aligned=True, room=ROOM["sm_87"] * 1024, d=1)


def failures(variant: Variant, architecture: str) -> list[str]:
    found = []
    for kernel in KERNELS:
        compiled = compiler.compile_source(
            f"{kernel}.cu", kernel, variant.defines(kernel), architecture
        )
        if compiled.spill_bytes > MOST_SPILLED or variant.shared_bytes(kernel) > variant.room:
            found.append(
                f"{kernel} {variant} {architecture}: {compiled.spill_bytes} bytes spilled, "
                f"{variant.shared_bytes(kernel)} bytes of shared memory"
            )
    return found


@pytest.mark.parametrize("architecture", ROOM)
def test_the_usual_sizes_compile_for_every_architecture(architecture: str) -> None:
    skip_unless_supported(architecture)
    assert not failures(USUAL._replace(room=ROOM[architecture] * 1024), architecture)


def named(variant: Any) -> str:
    """What sets the variant apart, as a test's name."""
    fields = variant._asdict().items()
    return ",".join(f"{key}={value}" for key, value in fields if value != getattr(USUAL, key))


OTHERS = [
    USUAL._replace(**changes)
    for changes in (
        {"dtype": torch.float16},
        {"dtype": torch.float32},
        {"dtype": torch.float32, "headdim": 20, "dstate": 10, "aligned": False, "d": 0},
        {"headdim": 80, "dstate": 16, "d": 2, "has_sequences": True},
        {"dstate": 64, "has_z": True, "has_sequences": True},
        {"aligned": False, "has_z": True},
        {"dstate": 256},
    )
]


FLAGS: list[dict[str, Any]] = [
    {"d": d, "has_z": z, "has_sequences": sequences}
    for d, z, sequences in itertools.product((0, 1, 2), (False, True), (False, True))
]
SIZES = ((64, 128), (64, 64), (128, 128), (64, 16), (80, 24), (20, 10), (64, 256))


def fits(variant: Variant) -> bool:
    """Whether the op takes it: also if its rows were not aligned."""
    worst = variant._replace(aligned=False)
    return variant.dstate <= MOST_STATES[variant.dtype] and all(
        worst.shared_bytes(kernel) <= worst.room for kernel in KERNELS
    )


if EVERY:
    drawn = (
        USUAL._replace(
            dtype=dtype,
            headdim=headdim,
            dstate=dstate,
            aligned=aligned,
            room=[*ROOM.values()][number % len(ROOM)] * 1024,
            **FLAGS[number % len(FLAGS)],
        )
        for number, (dtype, (headdim, dstate), aligned) in enumerate(
            itertools.product(NUMBERS, SIZES, (True, False))
        )
    )
    OTHERS += filter(fits, drawn)


@pytest.mark.parametrize("variant", OTHERS, ids=named)
def test_other_sizes_and_flags_compile(variant: Variant) -> None:
    architectures = [name for name in ROOM if EVERY and variant.room == ROOM[name] * 1024]
    for architecture in architectures or ["sm_87"]:
        skip_unless_supported(architecture)
        assert not failures(variant, architecture)


WARPGROUPS = (
    "ssd_forward_warpgroups",
    "ssd_states_warpgroups",
    "ssd_backward_states_warpgroups",
    "ssd_backward_warpgroups",
)


@pytest.mark.parametrize("kernel", WARPGROUPS)
@pytest.mark.parametrize(
    "changes",
    (
        {},
        {"dtype": torch.float16, "dstate": 64, "d": 0},
        {"d": 2, "has_z": True, "has_sequences": True},
        *(
            {**flags, "dtype": dtype, "dstate": dstate}
            for flags in (FLAGS if EVERY else [])
            for dtype in (torch.bfloat16, torch.float16)
            for dstate in (64, 128)
        ),
    ),
    ids=str,
)
def test_products_of_warpgroups_compile_and_are_not_waited_for_one_by_one(
    kernel: str, changes: dict[str, Any]
) -> None:
    skip_unless_supported("sm_90")
    variant = USUAL._replace(room=ROOM["sm_90"] * 1024, **changes)
    assert variant.fits_warpgroups and variant.shared_bytes(kernel) <= variant.room
    compiled = compiler.compile_source(f"{kernel}.cu", kernel, variant.defines(kernel), "sm_90a")
    assert compiled.spill_bytes <= MOST_SPILLED
    assert "serialized" not in compiled.log


def test_states_that_are_passed_on_as_tiles_compile() -> None:
    skip_unless_supported("sm_90")
    defines = (*USUAL._replace(room=ROOM["sm_90"] * 1024).defines("ssd_pass"), ("EXCHANGED", "1"))
    assert compiler.compile_source("ssd_pass.cu", "ssd_pass", defines, "sm_90a").spill_bytes == 0


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("dstate", range(1, 257, 15))
def test_chunks_and_pieces_are_what_the_kernels_can_hold(dtype: torch.dtype, dstate: int) -> None:
    variant = Variant(dtype, 64, dstate, aligned=True)
    assert variant.states % 16 == 0
    assert dstate <= variant.states < dstate + 16
    assert variant.chunk in (32, 64)
    for kernel in KERNELS:
        assert 1 <= variant.given <= variant.made(kernel) <= 3
