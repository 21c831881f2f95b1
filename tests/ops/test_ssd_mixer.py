"""Everything of a Mamba-2 mixer after its input projection against the recurrence in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.test_ssd import (
    MIXERS,
    TOLERANCE,
    assert_agrees,
    leaves,
    mixer,
    mixer_case,
    packed,
)
from tests.references.ssd import ssd_mixer
from tests.references.tolerance import relative_norm


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", MIXERS)
def test_mixer_agrees_with_the_recurrence(case: str, dtype: torch.dtype) -> None:
    tensors, options = mixer_case(case, 70)
    assert_agrees(mixer, ssd_mixer, tensors, dtype, TOLERANCE[dtype], **options)


@pytest.mark.parametrize("case", ["as a Mamba-2 block", "no norm"])
@pytest.mark.parametrize("seqlen", [2, 150])
def test_mixer_keeps_packed_sequences_apart(case: str, seqlen: int) -> None:
    tensors, options = mixer_case(case, seqlen)
    options["seq_idx"] = packed(seqlen).to(torch.int32)
    assert_agrees(mixer, ssd_mixer, tensors, torch.float32, 1e-5, **options)


@pytest.mark.parametrize("case", ["groups", "gated MLP, no norm", "no activation"])
def test_mixer_passes_gradcheck(case: str) -> None:
    tensors, options = mixer_case(case, 4)
    tensors = {name: t[:1] if t.dim() > 2 else t for name, t in tensors.items()}

    def function(*values: Tensor) -> Any:
        return mixer(
            **dict(zip(tensors, values)), **options, chunk_size=64, return_final_states=True
        )

    assert torch.autograd.gradcheck(
        function, list(leaves(tensors, torch.float64).values()), fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixer_in_half_precision_is_near_the_recurrence(dtype: torch.dtype) -> None:
    tensors, options = mixer_case("as a Mamba-2 block", 70)
    # Several roundings follow each other: after convolution, scan, norm and projection.
    assert_agrees(
        mixer,
        ssd_mixer,
        tensors,
        dtype,
        5 * TOLERANCE[dtype],
        **options,
    )


@pytest.mark.parametrize("case", ["as a Mamba-2 block", "gated MLP, no norm"])
def test_under_autocast_the_projection_has_its_dtype(case: str) -> None:
    tensors, options = mixer_case(case, 70)
    given = leaves(tensors, torch.float32)
    plain = mixer(**given, **options, chunk_size=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mixer(**given, **options, chunk_size=64)
    assert out.dtype == torch.bfloat16
    assert relative_norm(out, plain) < TOLERANCE[torch.bfloat16]
    dout = torch.randn_like(plain)
    actual = torch.autograd.grad(out, list(given.values()), dout.to(torch.bfloat16))
    expected = torch.autograd.grad(plain, list(given.values()), dout)
    for name, a, b in zip(given, actual, expected):
        assert a.dtype == torch.float32
        assert relative_norm(a, b) < 4 * TOLERANCE[torch.bfloat16], name


@pytest.mark.parametrize("case", MIXERS)
def test_a_mixer_without_gradients_gives_what_one_with_gradients_gives(case: str) -> None:
    tensors, options = mixer_case(case, 70)
    given = leaves(tensors, torch.float32)
    expected = mixer(**given, **options, chunk_size=64, return_final_states=True)
    with torch.no_grad():
        found = mixer(**given, **options, chunk_size=64, return_final_states=True)
    for actual, wanted in zip(found, expected):
        assert wanted.requires_grad and not actual.requires_grad
        assert torch.equal(actual, wanted)
