"""Every kernel of the selective scan compiles.

It does so without spills and within its shared memory. The number of states decides the kernels'
layout, the flags what is in them; one of each layout and each flag is compiled, not their product,
and all architectures only for 16 states.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import NUMBERS
from jetson_mamba.ops.selective_scan import cuda, plans

ARCHITECTURES = ("sm_72", "sm_80", "sm_87", "sm_90", "sm_110")
STATIC_SHARED_BYTES = 48 * 1024
FULL = plans.Variant(
    torch.bfloat16,
    16,
    is_complex=False,
    constant_b=False,
    constant_c=False,
    has_d=True,
    has_z=True,
    has_bias=True,
    softplus=True,
    aligned=True,
    segmented=True,
    recompute=True,
)


# The kernels of each source. One compilation makes them all.
ENTRIES = {
    "selective_scan_forward": ("selective_scan_forward", "selective_scan_forward_carry"),
    "selective_scan_backward": ("selective_scan_backward", "selective_scan_backward_carry"),
    "selective_scan_sums": ("selective_scan_sums",),
}

LAYOUTS = [
    FULL._replace(dtype=torch.float32, dstate=dstate, is_complex=is_complex)
    for is_complex in (False, True)
    for dstate in (1, 4, 8, 24, 32, 64, 100, 128, 256)
    # A lane has eight complex states of more than 128, and spills them in the backward pass: it
    # is right, slow, and asked for by no model known.
    if not (is_complex and dstate == 256)
]

FLAGS = [
    FULL._replace(**changes)
    for changes in (
        {"dtype": torch.float16, "aligned": False},
        {"dtype": torch.float32, "segmented": False},
        {"segmented": False, "recompute": False},
        {"has_d": False, "has_z": False, "recompute": False},
        {"has_bias": False, "softplus": False},
        {"constant_b": True},
        {"constant_c": True, "dtype": torch.float32},
        {"constant_b": True, "constant_c": True},
        {"is_complex": True, "constant_b": True, "dtype": torch.float32},
        {"is_complex": True, "constant_c": True},
        {"kept": False},
        {"kept": False, "has_z": False, "dtype": torch.float32, "recompute": False},
    )
]


def failures(variant: plans.Variant, architecture: str) -> list[str]:
    found = []
    for source, entries in ENTRIES.items():
        layout = plans.layout_of(variant.dstate, variant.is_complex)
        is_forward = "forward" in source
        defines = variant.defines(layout.forward_warps if is_forward else layout.backward_warps)
        compiled = compiler.compile_source(f"{source}.cu", entries[0], defines, architecture)
        for entry in entries:
            if entry.endswith("carry") and not variant.segmented:
                continue
            _registers, spilled, shared = compiler.resources(compiled.log, entry)
            if spilled or shared > STATIC_SHARED_BYTES:
                found.append(
                    f"{entry} {variant} {architecture}: {spilled} bytes spilled, "
                    f"{shared} bytes of shared memory"
                )
    return found


def skip_unless_supported(architecture: str) -> None:
    try:
        supported = compiler.supported_architectures()
    except Unavailable as reason:
        pytest.skip(str(reason))
    if architecture not in supported:
        pytest.skip(f"NVRTC {compiler.nvrtc_version()} does not compile for {architecture}")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
def test_sixteen_states_compile_for_every_architecture(
    dtype: torch.dtype, architecture: str
) -> None:
    skip_unless_supported(architecture)
    assert not failures(FULL._replace(dtype=dtype), architecture)


def named(variant: Any) -> str:
    """What sets the variant apart, as a test's name."""
    changed = (
        f"{name}={value}"
        for name, value in variant._asdict().items()
        if value != getattr(FULL, name)
    )
    return ",".join(changed)


@pytest.mark.parametrize("variant", [*LAYOUTS, *FLAGS], ids=named)
def test_every_layout_and_flag_compiles(variant: plans.Variant) -> None:
    skip_unless_supported("sm_87")
    assert not failures(variant, "sm_87")


@pytest.mark.parametrize("is_complex", (False, True))
@pytest.mark.parametrize("dstate", range(1, cuda.MAXIMUM_DSTATE + 1, 5))
def test_the_host_counts_channels_and_states_as_the_kernels_do(
    dstate: int, is_complex: bool
) -> None:
    layout = plans.layout_of(dstate, is_complex)
    assert 1 <= layout.channels <= 32
    assert dstate <= layout.padded <= max(4, 2 * dstate)
    assert layout.width == layout.padded * (2 if is_complex else 1)
    assert layout.interval % 8 == 0
