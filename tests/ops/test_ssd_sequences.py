"""Sequences that follow one another, padding and states at a sequence's end, for the ssd op."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch

from tests.ops.test_ssd import (
    BATCH,
    DSTATE,
    HEADDIM,
    NHEADS,
    assert_agrees,
    assert_near,
    leaves,
    packed,
    scan,
    scan_tensors,
)
from tests.references.ssd import ssd_scan
from tests.references.tolerance import relative_norm


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("seqlen", [9, 64, 200])
def test_state_does_not_pass_between_sequences(seqlen: int) -> None:
    assert_agrees(
        scan,
        ssd_scan,
        scan_tensors(seqlen),
        torch.float32,
        1e-5,
        dt_softplus=True,
        seq_idx=packed(seqlen).to(torch.int32),
    )


def test_a_sequence_change_on_a_chunk_boundary_resets_the_state() -> None:
    seq_idx = torch.zeros(BATCH, 192, dtype=torch.int32)
    seq_idx[:, 64:] = 1
    seq_idx[0, 128:] = 2
    assert_agrees(
        scan,
        ssd_scan,
        scan_tensors(192),
        torch.float32,
        1e-5,
        dt_softplus=True,
        seq_idx=seq_idx,
    )


def test_packed_sequences_give_what_each_gives_alone() -> None:
    tensors = scan_tensors(100)
    del tensors["initial_states"]
    seq_idx = torch.zeros(BATCH, 100, dtype=torch.int64)
    seq_idx[:, 37:] = 1
    out = scan(**tensors, chunk_size=64, seq_idx=seq_idx)
    long = ("x", "dt", "B", "C", "z")
    for part in (slice(0, 37), slice(37, None)):
        alone = {name: t[:, part] if name in long else t for name, t in tensors.items()}
        assert relative_norm(out[:, part], scan(**alone, chunk_size=64)) < 1e-14


def test_initial_states_belong_to_sequence_zero() -> None:
    tensors = leaves(scan_tensors(10), torch.float64)
    seq_idx = torch.ones(BATCH, 10, dtype=torch.int32)
    seq_idx[1] = 0
    out = scan(**tensors, chunk_size=64, seq_idx=seq_idx)
    (gradient,) = torch.autograd.grad(out.sum(), tensors["initial_states"])
    assert not gradient[0].any()
    assert gradient[1].any()


def test_padding_writes_nothing_into_the_state() -> None:
    tensors = scan_tensors(90)
    seq_idx = torch.zeros(BATCH, 90, dtype=torch.int32)
    seq_idx[:, 80:] = -1
    assert_agrees(
        scan,
        ssd_scan,
        tensors,
        torch.float32,
        1e-5,
        dt_softplus=True,
        seq_idx=seq_idx,
    )
    _, state = scan(**tensors, chunk_size=64, seq_idx=seq_idx, return_final_states=True)
    assert not state.any()


def test_the_last_state_continues_the_sequence() -> None:
    tensors = scan_tensors(100)
    whole, last = scan(**tensors, chunk_size=64, return_final_states=True)
    long = ("x", "dt", "B", "C", "z")
    head = {name: t[:, :33] if name in long else t for name, t in tensors.items()}
    tail = {name: t[:, 33:] if name in long else t for name, t in tensors.items()}
    first, state = scan(**head, chunk_size=64, return_final_states=True)
    tail["initial_states"] = state
    second, end = scan(**tail, chunk_size=64, return_final_states=True)
    assert relative_norm(torch.cat([first, second], 1), whole) < 1e-13
    assert relative_norm(end, last) < 1e-13


@pytest.mark.parametrize(
    "ends", [[0, 100], [0, 1, 64, 65, 100], [0, 30, 30, 90], [0, 64, 128, 150]]
)
def test_varlen_states_are_those_at_the_end_of_each_sequence(ends: list[int]) -> None:
    seqlen = 150
    tensors = {name: t[:1] if t.dim() > 2 else t for name, t in scan_tensors(seqlen).items()}
    boundaries = torch.tensor(ends, dtype=torch.int32)
    seq_idx = torch.bucketize(torch.arange(seqlen), boundaries[1:], right=True)[None]
    _, last, states = scan(
        **tensors,
        chunk_size=64,
        seq_idx=seq_idx.to(torch.int32),
        cu_seqlens=boundaries,
        dt_softplus=True,
        return_final_states=True,
        return_varlen_states=True,
    )
    reference: Callable[..., Any] = ssd_scan
    _, final, every = reference(**tensors, seq_idx=seq_idx, dt_softplus=True)
    assert relative_norm(last, final) < 1e-12
    for state, start, stop in zip(states, ends, ends[1:]):
        expected = every[0, stop - 1] if stop > start else torch.zeros_like(state)
        assert_near(state, expected, 1e-12)


def test_varlen_states_have_no_backward() -> None:
    tensors = leaves(
        {name: t[:1] if t.dim() > 2 else t for name, t in scan_tensors(20).items()}, torch.float32
    )
    out, states = scan(
        **tensors,
        chunk_size=64,
        cu_seqlens=torch.tensor([0, 8, 20]),
        return_varlen_states=True,
    )
    assert states.shape == (2, NHEADS, HEADDIM, DSTATE)
    with pytest.raises(RuntimeError, match="return_varlen_states"):
        out.sum().backward()
