"""Each way of a call of the ssd op, by kernels, operators or composed, against float64."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch

from jetson_mamba.dispatch.operators import has_operators
from jetson_mamba.dispatch.paths import Way
from jetson_mamba.ops.ssd import composed
from jetson_mamba.ops.ssd import op as ssd
from tests.ops.test_ssd import (
    MIXERS,
    TOLERANCE,
    assert_agrees,
    assert_near,
    leaves,
    mixer,
    mixer_case,
    packed,
    scan,
    scan_tensors,
)
from tests.references.ssd import ssd_mixer, ssd_scan
from tests.references.tolerance import relative_norm

# Untyped: it is given whatever tensors a case has.
recurrence: Callable[..., Any] = ssd_scan
WAYS = [Way.KERNELS, Way.COMPOSED, *([Way.OPERATORS] if has_operators else [])]


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# What kernels compute of the common cases is in test_ssd.
PAST_KERNELS = WAYS[1:]


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Way:
    """The way that every call of the op goes."""
    monkeypatch.setattr(ssd, "way", lambda *tensors: request.param)
    found: Way = request.param
    return found


past_kernels = pytest.mark.parametrize("way", PAST_KERNELS, indirect=True)


@past_kernels
@pytest.mark.parametrize("seqlen", [1, 7, 64, 150])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_scan_agrees_with_the_recurrence(way: Way, dtype: torch.dtype, seqlen: int) -> None:
    assert_agrees(scan, ssd_scan, scan_tensors(seqlen), dtype, TOLERANCE[dtype], dt_softplus=True)


@past_kernels
@pytest.mark.parametrize("left_out", ["z", "D", "dt_bias", "initial_states"])
def test_a_scan_does_without_each_optional_tensor(way: Way, left_out: str) -> None:
    tensors = scan_tensors(70)
    del tensors[left_out]
    assert_agrees(scan, ssd_scan, tensors, torch.float32, 1e-5, dt_softplus=True)


@past_kernels
@pytest.mark.parametrize("ngroups", [1, 2, 4])
@pytest.mark.parametrize("D", [None, "nheads", "headdim"])
def test_a_scan_takes_groups_and_either_form_of_d(way: Way, ngroups: int, D: str | None) -> None:
    tensors = scan_tensors(70, ngroups, D)
    assert_agrees(
        scan, ssd_scan, tensors, torch.float32, 1e-5, dt_softplus=True, dt_limit=(0.2, 0.9)
    )


@past_kernels
@pytest.mark.parametrize("seqlen", [9, 64, 200])
def test_a_state_does_not_pass_between_sequences(way: Way, seqlen: int) -> None:
    for seq_idx in (packed(seqlen), packed(seqlen).to(torch.int32) - 1):
        assert_agrees(scan, ssd_scan, scan_tensors(seqlen), torch.float32, 1e-5, seq_idx=seq_idx)


@past_kernels
def test_a_sequence_change_on_a_chunk_boundary_resets_the_state(way: Way) -> None:
    seq_idx = torch.zeros(2, 192, dtype=torch.int32)
    seq_idx[:, 64:] = 1
    seq_idx[0, 128:] = 2
    assert_agrees(scan, ssd_scan, scan_tensors(192), torch.float32, 1e-5, seq_idx=seq_idx)


def test_a_long_sequence_has_longer_chunks(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composed, "MANY_STEPS", 64)
    assert_agrees(scan, ssd_scan, scan_tensors(70), torch.float32, 1e-5, dt_softplus=True)


@past_kernels
@pytest.mark.parametrize("case", MIXERS)
def test_a_mixer_agrees_with_the_recurrence(way: Way, case: str) -> None:
    tensors, options = mixer_case(case, 70)
    assert_agrees(mixer, ssd_mixer, tensors, torch.float32, 1e-5, **options)
    options["seq_idx"] = packed(70).to(torch.int32)
    assert_agrees(mixer, ssd_mixer, tensors, torch.float32, 1e-5, **options)


@past_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_mixer_in_half_precision_is_near_the_recurrence(way: Way, dtype: torch.dtype) -> None:
    tensors, options = mixer_case("as a Mamba-2 block", 70)
    assert_agrees(mixer, ssd_mixer, tensors, dtype, 5 * TOLERANCE[dtype], **options)


@pytest.mark.parametrize("initial", [False, True])
@pytest.mark.parametrize("bounds", [[0, 20, 64, 100], [0, 100], [0, 0, 33, 99]])
def test_states_at_the_ends_of_sequences(way: Way, initial: bool, bounds: list[int]) -> None:
    tensors = {k: t[:1] if t.dim() > 2 else t for k, t in scan_tensors(100).items()}
    if not initial:
        del tensors["initial_states"]
    ends = torch.tensor(bounds)
    seq_idx = torch.zeros(1, 100, dtype=torch.int32)
    for index, end in enumerate(bounds[1:-1]):
        seq_idx[:, end:] = index + 1
    if bounds[1] == 0:
        seq_idx -= 1  # an empty sequence, after which the first that has steps is sequence 0
    out, states = scan(
        **tensors, chunk_size=64, cu_seqlens=ends, seq_idx=seq_idx, return_varlen_states=True
    )
    assert out.shape == tensors["x"].shape
    long = ("x", "dt", "B", "C", "z")
    for index, (start, stop) in enumerate(zip(bounds, bounds[1:])):
        alone = {k: t[:, start:stop] if k in long else t for k, t in tensors.items()}
        if index:
            alone.pop("initial_states", None)
        if start == stop:
            expected = tensors.get("initial_states", torch.zeros_like(states[:1]))
        else:
            _, expected, _ = recurrence(**alone)
        assert_near(states[index], expected[0].to(states.dtype), 1e-12)


DECAYS = [89.0, 3e38, float("inf")]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_that_decays_at_once_is_no_nan(way: Way, decay: float, dtype: torch.dtype) -> None:
    """With ``A = -inf`` each step starts anew: ``exp(-inf * dt) = 0``."""
    tensors = scan_tensors(70)
    del tensors["initial_states"]
    # One head of strong decays beside others.
    tensors["A"][1] = -1e6 * decay
    given = leaves(tensors, dtype)
    out, state = scan(**given, chunk_size=64, dt_softplus=True, return_final_states=True)
    mild = {**tensors, "A": torch.where(tensors["A"] < -1e6, -1e6, tensors["A"])}
    expected, expected_state, _ = recurrence(**mild, dt_softplus=True)
    assert relative_norm(out, expected) < TOLERANCE[dtype]
    assert relative_norm(state, expected_state) < TOLERANCE[dtype]
    for name, gradient in zip(given, torch.autograd.grad(out.sum(), list(given.values()))):
        assert gradient.isfinite().all(), name


def test_padding_leaves_the_state_alone_where_it_would_decay_at_once(way: Way) -> None:
    tensors = {**scan_tensors(9), "A": torch.full((4,), -torch.inf, dtype=torch.float64)}
    seq_idx = torch.zeros(2, 9, dtype=torch.int64)
    seq_idx[:, 5:] = -1
    out = scan(**tensors, chunk_size=64, dt_softplus=True, seq_idx=seq_idx)
    assert out.isfinite().all()


@pytest.mark.parametrize("chunk_size", [16, 64, 256])
@pytest.mark.parametrize("state_dtype", [torch.bfloat16, torch.float16])
def test_states_between_chunks_are_kept_in_the_dtype_that_is_named(
    way: Way, state_dtype: torch.dtype, chunk_size: int
) -> None:
    tensors = scan_tensors(150)
    given = leaves(tensors, torch.float64)
    options: dict[str, Any] = {"chunk_size": chunk_size, "return_final_states": True}
    out, last = scan(**given, **options, state_dtype=state_dtype)
    # By hand: each chunk alone, started from the state that the ones before it leave, rounded.
    exact, exact_last = scan(**tensors, **options)
    long = ("x", "dt", "B", "C", "z")
    expected = []
    for start in range(0, 150, chunk_size):
        chunk = {
            k: t[:, start : start + chunk_size] if k in long else t for k, t in tensors.items()
        }
        if start:
            before = {k: t[:, :start] if k in long else t for k, t in tensors.items()}
            _, state, _ = recurrence(**before)
            chunk["initial_states"] = state
        chunk["initial_states"] = chunk["initial_states"].to(state_dtype).double()
        expected.append(recurrence(**chunk)[0])
    assert relative_norm(out, torch.cat(expected, 1)) < 1e-12
    assert relative_norm(last, exact_last) < 1e-12
    assert (relative_norm(out, exact) > 1e-5) is True
    # The rounding has no slope of its own.
    found = torch.autograd.grad(out.sum(), list(given.values()))
    plain = leaves(tensors, torch.float64)
    wanted = torch.autograd.grad(scan(**plain, **options)[0].sum(), list(plain.values()))
    for name, actual, right in zip(given, found, wanted):
        assert relative_norm(actual, right) < 2e-2, name


def test_a_dtype_that_states_cannot_have_is_refused(way: Way) -> None:
    with pytest.raises(TypeError, match=r"state_dtype: .*found torch\.int8"):
        scan(**scan_tensors(8), chunk_size=64, state_dtype=torch.int8)


@pytest.mark.parametrize("state_dtype", [None, torch.float32])
def test_a_mixer_hands_the_dtype_of_states_to_its_scan(
    way: Way, state_dtype: torch.dtype | None
) -> None:
    tensors, options = mixer_case("as a Mamba-2 block", 70)
    given = leaves(tensors, torch.float32)
    expected = mixer(**given, **options, chunk_size=16)
    exact = mixer(**given, **options, chunk_size=16, state_dtype=state_dtype)
    assert relative_norm(exact, expected) < 1e-6
    rounded = mixer(**given, **options, chunk_size=16, state_dtype=torch.bfloat16)
    assert 1e-5 < relative_norm(rounded, expected) < 1e-2
