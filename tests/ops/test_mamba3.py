"""Mamba-3's scan agrees with a recurrence in float64, forward or backward. Its steps do too."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.ops import mamba3
from jetson_mamba.ops.mamba3 import composed
from tests.references import mamba3 as references
from tests.references.tolerance import relative_norm

op: Any = mamba3
NHEADS, HEADDIM, DSTATE = 4, 6, 8
SCAN = ("q", "k", "v", "adt", "dt", "trap", "q_bias", "k_bias", "angles")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 1e-2}


def given(
    seqlen: int, *, batch: int = 2, rank: int = 1, ngroups: int = 2, angles: int = 2
) -> dict[str, Tensor]:
    """The arguments of a scan, by name, in float64."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64)

    torch.manual_seed(seqlen)
    steps = (batch, NHEADS, seqlen)
    return {
        "q": normal(batch, seqlen, rank, ngroups, DSTATE),
        "k": normal(batch, seqlen, rank, ngroups, DSTATE),
        "v": normal(batch, seqlen, NHEADS, HEADDIM),
        "adt": -torch.rand(*steps).double(),
        "dt": 0.5 * torch.rand(*steps).double(),
        "trap": normal(*steps),
        "q_bias": normal(NHEADS, rank, DSTATE),
        "k_bias": normal(NHEADS, rank, DSTATE),
        "angles": normal(batch, seqlen, NHEADS, angles),
        "D": normal(NHEADS),
        "z": normal(batch, seqlen, NHEADS, HEADDIM),
    }


def states(sequences: int, angles: int = 2) -> dict[str, Tensor]:
    return {
        "angle": 6 * torch.rand(sequences, NHEADS, angles).double(),
        "ssm": torch.randn(sequences, NHEADS, HEADDIM, DSTATE).double(),
        "k_state": torch.randn(sequences, 1, NHEADS, DSTATE).double(),
        "v_state": torch.randn(sequences, NHEADS, HEADDIM).double(),
    }


STATES = ("angle", "ssm", "k_state", "v_state")


def siso(of: dict[str, Tensor], **options: Any) -> tuple[Tensor, ...]:
    before = None
    if "angle" in of:
        before = (of["angle"], of["ssm"], of["k_state"].squeeze(1), of["v_state"])
    arguments = [
        of[name].squeeze(2)
        if name in ("q", "k")
        else of[name].squeeze(1)
        if name.endswith("bias")
        else of[name]
        for name in SCAN
    ]
    found: Any = op.mamba3_siso_combined(
        *arguments, of.get("D"), of.get("z"), before, return_final_states=True, **options
    )
    return found  # type: ignore[no-any-return]


def siso_reference(of: dict[str, Tensor]) -> tuple[Tensor, ...]:
    before = tuple(of[name] for name in STATES) if "angle" in of else None
    out, (angle, ssm, k, v) = references.mamba3(
        *[of[name] for name in SCAN],
        D=of.get("D"),
        states=before,  # type: ignore[arg-type]
    )
    out = out.squeeze(2)
    if "z" in of:
        out = out * functional.silu(of["z"])
    return out, angle, ssm, k.squeeze(1), v


def worst(
    op_: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    reference: Callable[[dict[str, Tensor]], tuple[Tensor, ...]],
    of: dict[str, Tensor],
    dtype: torch.dtype,
) -> float:
    """The largest distance of a result or a gradient."""
    rounded = {name: each.to(dtype) for name, each in of.items()}
    wide = {name: each.double().requires_grad_() for name, each in rounded.items()}
    narrow = {name: each.detach().requires_grad_() for name, each in rounded.items()}
    expected, found = reference(wide), op_(narrow)
    weights = [torch.randn_like(each) for each in expected]
    gradients = [
        torch.autograd.grad(
            [each for each in results if each.requires_grad],
            list(leaves.values()),
            [w.to(each.dtype) for each, w in zip(results, weights) if each.requires_grad],
        )
        for results, leaves in ((expected, wide), (found, narrow))
    ]
    return max(
        *(relative_norm(a, b) for a, b in zip(found, expected)),
        *(relative_norm(a, b) for a, b in zip(*reversed(gradients))),
    )


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("seqlen", [1, 5, 64, 131])
@pytest.mark.parametrize("begins", [True, False])
def test_one_input_and_output_a_step(dtype: torch.dtype, seqlen: int, begins: bool) -> None:
    of = {**given(seqlen), **(states(2) if begins else {})}
    if not begins:
        del of["z"], of["D"]
    assert worst(siso, siso_reference, of, dtype) < TOLERANCE[dtype]


@pytest.mark.parametrize("blocks", [1, 4096])
def test_however_many_chunks_are_worked_on_at_once(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(composed, "ROWS", 4)
    monkeypatch.setattr(composed, "BLOCK_ELEMENTS_CPU", blocks)
    of = {**given(23), **states(2)}
    assert worst(siso, siso_reference, of, torch.float64) < 1e-12


def apart(of: dict[str, Tensor], ends: list[int], number: int) -> dict[str, Tensor]:
    """What one of several packed sequences is given."""
    steps = slice(ends[number], ends[number + 1])
    one = dict(of)
    for name in ("q", "k", "v", "z", "angles"):
        if name in of:
            one[name] = of[name][:, steps]
    for name in ("adt", "dt", "trap"):
        one[name] = of[name][..., steps]
    for name in STATES:
        if name in of:
            one[name] = of[name][number : number + 1]
    return one


def packed_reference(
    of: dict[str, Tensor], ends: list[int], one: Callable[..., tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Sequence for sequence; zero where none is."""
    results = [one(apart(of, ends, number)) for number in range(len(ends) - 1)]
    outs = [each[0] for each in results]
    rest = of["v"].shape[1] - ends[-1]
    outs.append(torch.zeros_like(outs[0][:, :1]).expand(-1, rest, *outs[0].shape[2:]))
    return torch.cat(outs, 1), *(torch.cat(each) for each in list(zip(*results))[1:])


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("ends", [[0, 9], [0, 4, 5, 9], [0, 64, 128, 131], [0, 3, 70, 90]])
def test_packed_sequences_know_nothing_of_each_other(ends: list[int], begins: bool) -> None:
    of = given(ends[-1] + (ends[-1] == 90), batch=1)
    if begins:
        of.update(states(len(ends) - 1))
    cu_seqlens = torch.tensor(ends, dtype=torch.int32)
    found = worst(
        lambda of: siso(of, cu_seqlens=cu_seqlens),
        lambda of: packed_reference(of, ends, siso_reference),
        of,
        torch.float64,
    )
    assert found < 1e-12


def test_a_sequence_without_steps_keeps_its_states() -> None:
    of = {**given(6, batch=1), **states(3)}
    cu_seqlens = torch.tensor([0, 2, 2, 6])
    results = siso(of, cu_seqlens=cu_seqlens)
    whole = packed_reference(of, [0, 2, 6], lambda one: siso_reference({**one, **before(one)}))

    for name, each in zip(STATES, results[1:]):
        assert torch.equal(each[1], of[name].squeeze(1)[1] if name == "k_state" else of[name][1])
    assert whole[0].shape == results[0].shape


def before(one: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: one[name] for name in STATES}


# Several inputs and outputs a step.

MIMO = {
    "whole": {"z": True, "out": True, "norm": False},
    "apart": {"z": False, "out": False, "norm": False},
    "gated and apart": {"z": True, "out": False, "norm": False},
    "ungated": {"z": False, "out": True, "norm": False},
    "normed": {"z": True, "out": True, "norm": True},
}


def mimo_given(seqlen: int, rank: int, kind: str, batch: int = 2) -> dict[str, Tensor]:
    of = given(seqlen, rank=rank, batch=batch)
    for name in ("v_proj", "z_proj", "out_proj"):
        of[name] = torch.randn(NHEADS, rank, HEADDIM, dtype=torch.float64)
    of["weight"] = torch.rand(NHEADS * HEADDIM, dtype=torch.float64)
    parts = MIMO[kind]
    unused = [
        *([] if parts["z"] else ["z", "z_proj"]),
        *([] if parts["out"] else ["out_proj"]),
        *([] if parts["norm"] else ["weight"]),
    ]
    return {name: each for name, each in of.items() if name not in unused}


def mimo(of: dict[str, Tensor], **options: Any) -> tuple[Tensor, ...]:
    if "weight" in of:
        options = {
            **options,
            "fuse_pregate_headwise_rms_norm": True,
            "outproj_norm_weight": of["weight"],
            "outproj_norm_eps": 1e-3,
        }
    found: Any = op.mamba3_mimo(
        *(of[name] for name in SCAN[:8]),
        *(of.get(name) for name in ("v_proj", "z_proj", "out_proj", "angles", "D", "z")),
        16,
        4,
        of["v"].dtype,
        return_state=True,
        **options,
    )
    return found  # type: ignore[no-any-return]


def mimo_reference(of: dict[str, Tensor]) -> tuple[Tensor, ...]:
    y, last = references.mamba3(
        *[of[name] for name in SCAN], D=of.get("D"), v_proj=of["v_proj"], halves=True
    )
    norm = (of["weight"], 1e-3) if "weight" in of else None
    out = references.mimo_output(y, of.get("z"), of.get("z_proj"), of.get("out_proj"), norm)
    # No gradient is taken of the states.
    return out, *(each.detach() for each in last)


@pytest.mark.parametrize("kind", MIMO)
@pytest.mark.parametrize("rank", [1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_several_inputs_and_outputs_a_step(kind: str, rank: int, dtype: torch.dtype) -> None:
    of = mimo_given(37, rank, kind)
    assert worst(mimo, mimo_reference, of, dtype) < TOLERANCE[dtype]


def test_several_inputs_and_outputs_in_packed_sequences() -> None:
    ends = [0, 16, 20, 39]
    cu_seqlens = torch.tensor(ends, dtype=torch.int32)
    found = worst(
        lambda of: mimo(of, cu_seqlens=cu_seqlens),
        lambda of: packed_reference(of, ends, mimo_reference),
        mimo_given(39, 4, "whole", batch=1),
        torch.float64,
    )
    assert found < 1e-12


# Steps of decoding.


@pytest.mark.parametrize("halves", [True, False])
@pytest.mark.parametrize("conjugate", [True, False])
@pytest.mark.parametrize("inplace", [True, False])
def test_the_rotation_of_a_step(halves: bool, conjugate: bool, inplace: bool) -> None:
    torch.manual_seed(0)
    q, k, bias_q, bias_k = torch.randn(4, 3, 2, NHEADS, DSTATE, dtype=torch.float64)
    state, rate = torch.randn(2, 3, NHEADS, 3, dtype=torch.float64)
    dt = torch.rand(3, NHEADS, dtype=torch.float64)
    angle = state + torch.tanh(rate) * dt[..., None] * torch.pi
    by = (-angle if conjugate else angle)[:, None]
    expected = [
        references.rotate(q + bias_q[0], by, halves),
        references.rotate(k + bias_k[0], by, halves),
        angle,
    ]
    arguments = (q, k, state, rate, dt, bias_q[0], bias_k[0])
    found = op.apply_rotary_qk_inference_fwd(
        *arguments, inplace=inplace, conjugate=conjugate, rotate_pairwise=not halves
    )
    for actual, right, target in zip(found, expected, (q, k, state)):
        assert relative_norm(actual, right) < 1e-14
        assert (actual is target) == inplace


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_steps_one_after_the_other_are_the_scan(dtype: torch.dtype) -> None:
    of = {**given(5), **states(2)}
    expected, *last = siso_reference(of)
    after: Any = [of[name].to(dtype) for name in STATES]
    after[2] = after[2].squeeze(1)
    cast = {name: each.to(dtype) for name, each in of.items()}
    for t in range(5):
        out, after = op.mamba3_siso_step(
            *(cast[name][:, t].squeeze(1) for name in ("q", "k")),
            cast["v"][:, t],
            *(cast[name][..., t] for name in ("adt", "dt", "trap")),
            *(cast[name].squeeze(1) for name in ("q_bias", "k_bias")),
            cast["angles"][:, t],
            cast["D"],
            cast["z"][:, t],
            after,
        )
        assert relative_norm(out, expected[:, t]) < TOLERANCE[dtype]
    for actual, right in zip(after, last):
        assert relative_norm(actual, right) < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["whole", "apart"])
@pytest.mark.parametrize("elsewhere", [True, False])
def test_steps_with_several_inputs_and_outputs(kind: str, elsewhere: bool) -> None:
    of = mimo_given(4, 3, kind)
    expected, _, last, _, _ = mimo_reference(of)
    state = torch.zeros(2, NHEADS, HEADDIM, DSTATE, dtype=torch.float64)
    angle = torch.zeros(2, NHEADS, 2, dtype=torch.float64)
    k_before = torch.zeros(2, 3, NHEADS, DSTATE, dtype=torch.float64)
    v_before = torch.zeros(2, NHEADS, HEADDIM, dtype=torch.float64)
    for t in range(4):
        heads = [of[name][:, t].repeat_interleave(NHEADS // 2, 2) for name in ("q", "k")]
        biases = [of[name].transpose(0, 1) for name in ("q_bias", "k_bias")]
        dt = of["dt"][..., t]
        q, k, angle = op.apply_rotary_qk_inference_fwd(
            *heads, angle, of["angles"][:, t], dt, *biases, rotate_pairwise=False
        )
        out = torch.full_like(expected[:, t], float("nan"))
        target = torch.full_like(state, float("nan")) if elsewhere else None
        projections = {
            name: of[name].transpose(0, 1)
            for name in ("v_proj", "z_proj", "out_proj")
            if name in of
        }
        v, trap = of["v"][:, t], torch.sigmoid(of["trap"][..., t])
        version = state._version
        op.mamba3_step_fn(
            *(state, k_before, v_before, of["adt"][..., t] / dt, k, q, of["D"], v, dt, trap),
            projections["v_proj"],
            projections.get("out_proj"),
            target,
            out,
            of["z"][:, t] if "z" in of else None,
            projections.get("z_proj"),
        )
        assert (state._version == version) == elsewhere
        if target is not None:
            state = target
        k_before, v_before = k, v
        assert relative_norm(out, expected[:, t]) < 1e-12
    assert relative_norm(state, last) < 1e-12


# Whatever is asked of it.


def test_it_has_second_derivatives() -> None:
    of = {**given(3, batch=1, ngroups=1), **states(1)}
    names = list(of)

    def results(*leaves: Tensor) -> tuple[Tensor, ...]:
        return siso(dict(zip(names, leaves)))

    leaves = [each.requires_grad_() for each in of.values()]
    assert torch.autograd.gradgradcheck(results, leaves, fast_mode=True)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_it_is_transformed_and_traced() -> None:
    of = given(7)
    out = siso(of)[0]

    def of_v(v: Tensor) -> Tensor:
        return siso({**of, "v": v})[0]

    assert relative_norm(torch.func.vmap(of_v)(of["v"][None])[0], out) < 1e-14
    tangent = torch.randn_like(of["v"])
    slope = torch.func.jvp(of_v, (of["v"],), (tangent,))[1]
    # It is linear in v.
    assert relative_norm(slope, of_v(of["v"] + tangent) - out) < 1e-12
    meta = siso({name: each.to("meta") for name, each in of.items()})
    assert [each.shape for each in meta] == [each.shape for each in siso(of)]


def test_autocast_does_not_reach_inside() -> None:
    of = {name: each.float() for name, each in given(70).items()}
    with torch.autocast("cpu", torch.bfloat16):
        out = siso(of)[0]
    assert torch.equal(out, siso(of)[0])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": torch.zeros(2, 5, 1, 3, DSTATE)}, "K: expected shape"),
        ({"dt": torch.zeros(2, 5, NHEADS)}, "DT: expected shape"),
        ({"angles": torch.zeros(2, 5, NHEADS, 5)}, "Angles: expected at most 4, found 5"),
        ({"D": torch.zeros(3)}, "D: expected shape"),
        ({"z": torch.zeros(2, 5, NHEADS, 1)}, "Z: expected shape"),
        ({"trap": torch.zeros(2, NHEADS, 5).long()}, "Trap: expected float16"),
        ({"v": torch.zeros(2, 0, NHEADS, HEADDIM)}, "V: expected shape"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        siso({**given(5), **change})
    with pytest.raises(ValueError, match=r"^Q: expected a seqlen of at least 1, found 0"):
        siso(given(0))


@pytest.mark.parametrize(
    ("cu_seqlens", "message"),
    [
        ([0, 3, 2, 5], "boundaries that do not fall"),
        ([0, 6], "boundaries that do not fall"),
        ([3, 3], "at least one step"),
        ([0], r"expected shape \(sequences \+ 1,\)"),
    ],
)
def test_boundaries_that_are_none_are_refused(cu_seqlens: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        siso(given(5, batch=1), cu_seqlens=torch.tensor(cu_seqlens))
    with pytest.raises(ValueError, match="expected batch 1"):
        siso(given(5), cu_seqlens=torch.tensor([0, 5]))


def test_a_gate_needs_its_projection() -> None:
    of = mimo_given(3, 2, "whole")
    del of["z_proj"]
    with pytest.raises(ValueError, match="MIMO_Z: expected a tensor with Z, found None"):
        mimo(of)
