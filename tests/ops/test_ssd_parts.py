"""The parts of Mamba-2's scan, put together, beside the recurrence in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.ssd import parts
from tests.references.ssd import ssd_scan
from tests.references.tolerance import relative_norm

NHEADS, NGROUPS, HEADDIM, DSTATE, CHUNK = 4, 2, 5, 3, 4
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}
SEQ_IDX = torch.tensor([[0] * 3 + [1] * 8, [0] * 4 + [1] * 5 + [3] * 2], dtype=torch.int32)


def given(seqlen: int, batch: int = 2) -> dict[str, Tensor]:
    torch.manual_seed(0)
    shapes = {
        "x": (batch, seqlen, NHEADS, HEADDIM),
        "dt": (batch, seqlen, NHEADS),
        "A": (NHEADS,),
        "B": (batch, seqlen, NGROUPS, DSTATE),
        "C": (batch, seqlen, NGROUPS, DSTATE),
        "D": (NHEADS, HEADDIM),
        "z": (batch, seqlen, NHEADS, HEADDIM),
        "dt_bias": (NHEADS,),
        "initial_states": (batch, NHEADS, HEADDIM, DSTATE),
    }
    made = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    return {**made, "A": -made["A"].abs()}


def scanned(of: dict[str, Tensor], seq_idx: Tensor | None) -> tuple[Tensor, Tensor]:
    """The output and the last state, by the functions that launch upstream's kernels."""
    x, B, C = of["x"], of["B"], of["C"]
    sums, steps = parts.chunk_cumsum_forward(
        of["dt"], of["A"], CHUNK, of["dt_bias"], True, (0.01, 2.0)
    )
    states = parts.chunk_state_forward(B, x, steps, sums, seq_idx)
    starts, last = parts.state_passing_forward(
        states.flatten(3), sums[..., -1], of["initial_states"].flatten(2), seq_idx, CHUNK
    )
    cb = parts.bmm_chunk_forward(C, B, CHUNK, seq_idx, output_dtype=states.dtype)
    starts = torch.unflatten(starts, -1, (HEADDIM, DSTATE))
    out, before = parts.chunk_scan_forward(cb, x, steps, sums, C, starts, of["D"], of["z"], seq_idx)
    assert before is not None and before.shape == out.shape
    return out, torch.unflatten(last, -1, (HEADDIM, DSTATE))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_together_they_are_the_scan(dtype: torch.dtype, packed: bool) -> None:
    of = {name: each.to(dtype) for name, each in given(11).items()}
    seq_idx = SEQ_IDX if packed else None
    wide = {name: each.double().requires_grad_() for name, each in of.items()}
    x, dt, A, B, C, *_ = wide.values()
    others = {name: wide[name] for name in ("D", "z", "dt_bias", "initial_states")}
    expected = ssd_scan(
        x, dt, A, B, C, seq_idx=seq_idx, dt_softplus=True, dt_limit=(0.01, 2.0), **others
    )[:2]
    leaves = {name: each.requires_grad_() for name, each in of.items()}
    found = scanned(leaves, seq_idx)
    weights = [torch.randn_like(each) for each in expected]
    right, actual = (
        torch.autograd.grad(
            results,
            list(arguments.values()),
            [weight.to(result.dtype) for weight, result in zip(weights, results)],
        )
        for results, arguments in ((expected, wide), (found, leaves))
    )
    for each, exact in zip((*found, *actual), (*expected, *right)):
        assert relative_norm(each, exact) < TOLERANCE[dtype]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("written", [True, False])
def test_the_backward_pass_of_the_whole(gated: bool, written: bool) -> None:
    of = given(11)
    if not gated:
        del of["z"]
    leaves = {name: each.requires_grad_() for name, each in of.items()}
    scan = [leaves[name] for name in ("x", "dt", "A", "B", "C")]
    others: Any = dict([*leaves.items()][5:])
    out, last, _ = ssd_scan(*scan, seq_idx=SEQ_IDX, dt_softplus=True, **others)
    dout, dlast = torch.randn_like(out), torch.randn_like(last)
    expected = torch.autograd.grad([out, last], [*leaves.values()], [dout, dlast])
    targets: Any = {}
    if written:
        targets = {
            f"d{name}": torch.empty_like(of[name])
            for name in ("x", "dt", "B", "C", "z")
            if name in of
        }
    op: Any = parts.chunk_scan_combined_backward
    *found, again = op(
        *(dout, *scan, out, CHUNK, leaves["D"], leaves.get("z"), leaves["dt_bias"]),
        *(leaves["initial_states"], dlast, SEQ_IDX, True),
        recompute_output=True,
        **targets,
    )
    assert again is not None and relative_norm(again, out) < 1e-12
    assert (found[6] is None) == (not gated)
    for actual, right in zip([each for each in found if each is not None], expected):
        assert not actual.requires_grad and relative_norm(actual, right) < 1e-12
    for name, target in targets.items():
        assert any(each is target for each in found), name


def test_those_with_a_graph_of_their_own_are_the_scan() -> None:
    """With whole chunks, as upstream's ``mamba_chunk_scan`` puts them together."""
    of = given(2 * CHUNK)
    x, B, C = of["x"], of["B"], of["C"]
    sums, steps = parts.chunk_cumsum_forward(of["dt"], of["A"], CHUNK, dt_softplus=True)
    states = parts.chunk_state(B, x, steps, sums)
    starts, _ = parts.state_passing(states.flatten(3), sums[..., -1])
    starts = torch.unflatten(starts, -1, (HEADDIM, DSTATE))
    out = parts.chunk_scan(B, C, x, steps, sums, starts, of["D"][:, 0])
    expected, *_ = ssd_scan(x, of["dt"], of["A"], B, C, D=of["D"][:, 0], dt_softplus=True)
    assert relative_norm(out, expected) < 1e-12


@pytest.mark.parametrize("ends", [[0, 11], [0, 4, 5, 11], [0, 3, 3, 8]])
def test_the_states_at_the_ends_of_packed_sequences(ends: list[int]) -> None:
    of = given(11, batch=1)
    x, dt, A, B, C = (of[name] for name in ("x", "dt", "A", "B", "C"))
    sums, steps = parts.chunk_cumsum_forward(dt, A, CHUNK, dt_softplus=True)
    index = torch.zeros(1, 11, dtype=torch.int32)
    for end in ends[1:-1]:
        index[:, end:] += 1
    states = parts.chunk_state_forward(B, x, steps, sums, index)
    starts, _ = parts.state_passing_forward(
        states.flatten(3), sums[..., -1], seq_idx=index, chunk_size=CHUNK
    )
    found = parts.chunk_state_varlen(
        *(B[0], x[0], steps[0], sums[0], torch.tensor(ends, dtype=torch.int32)),
        torch.unflatten(starts, -1, (HEADDIM, DSTATE))[0],
    )
    for number, (start, stop) in enumerate(zip(ends, ends[1:])):
        if start == stop:
            assert not found[number].any()
            continue
        part = slice(start, stop)
        _, last, _ = ssd_scan(x[:, part], dt[:, part], A, B[:, part], C[:, part], dt_softplus=True)
        assert relative_norm(found[number], last[0]) < 1e-12


def test_products_without_groups_and_states_that_are_given() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 2, 6, 3, dtype=torch.bfloat16)
    found = parts.bmm_chunk_forward(a, b, 4)
    assert found.dtype == torch.bfloat16 and found.shape == (2, 2, 4, 4)
    expected = a[:, :4].double() @ b[:, :4].double().transpose(1, 2)
    assert relative_norm(found[:, 0], expected) < 1e-2
    of = {name: each.bfloat16() for name, each in given(6).items()}
    sums, steps = parts.chunk_cumsum_forward(of["dt"], of["A"], 4)
    arguments = (of["B"], of["x"], steps, sums)
    exact = parts.chunk_state_forward(*arguments)
    assert exact.dtype == torch.float32
    assert parts.chunk_state_forward(*arguments, states_in_fp32=False).dtype == torch.bfloat16
    target = torch.empty_like(exact)
    assert parts.chunk_state_forward(*arguments, states=target) is target
    assert torch.equal(target, exact)
