"""The ssd op against a loop over time in float64: outputs, states and every gradient."""

from __future__ import annotations

import math
from typing import Any, Callable, Dict

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.ssd import (
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
)
from tests.references.ssd import ssd_scan
from tests.references.tolerance import relative_norm

# float32: sums in float32. 16 bits: one rounding of each output or gradient to 8 or 11 bits.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.bfloat16: 6e-3,
    torch.float16: 1e-3,
}
BATCH, NHEADS, HEADDIM, DSTATE, WIDTH = 2, 4, 3, 5, 4

# Untyped, so that tests can pass any keywords and use what comes back.
scan: Callable[..., Any] = mamba_chunk_scan_combined
mixer: Callable[..., Any] = mamba_split_conv1d_scan_combined
Tensors = Dict[str, Tensor]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def scan_tensors(seqlen: int, ngroups: int = 2, D: str | None = "nheads") -> Tensors:
    heads = (BATCH, seqlen, NHEADS, HEADDIM)
    tensors = {
        "x": random(*heads),
        "dt": random(BATCH, seqlen, NHEADS) - 1,
        "A": -random(NHEADS).exp(),
        "B": random(BATCH, seqlen, ngroups, DSTATE),
        "C": random(BATCH, seqlen, ngroups, DSTATE),
        "z": random(*heads),
        "dt_bias": random(NHEADS),
        "initial_states": random(BATCH, NHEADS, HEADDIM, DSTATE),
    }
    if D is not None:
        tensors["D"] = random(NHEADS) if D == "nheads" else random(NHEADS, HEADDIM)
    return tensors


def mixer_tensors(
    seqlen: int, ngroups: int = 1, mlp: int = 0, out_dim: int = 7, per_channel_D: bool = False
) -> Tensors:
    dim = NHEADS * HEADDIM
    channels = dim + 2 * ngroups * DSTATE
    return {
        "zxbcdt": random(BATCH, seqlen, 2 * mlp + dim + channels + NHEADS),
        "conv1d_weight": random(channels, WIDTH),
        "conv1d_bias": random(channels),
        "dt_bias": random(NHEADS),
        "A": -random(NHEADS).exp(),
        "D": random(NHEADS, HEADDIM) if per_channel_D else random(NHEADS),
        "initial_states": random(BATCH, NHEADS, HEADDIM, DSTATE),
        "rmsnorm_weight": random(dim),
        "outproj_weight": random(out_dim, mlp + dim),
        "outproj_bias": random(out_dim),
    }


def packed(seqlen: int) -> Tensor:
    """Three sequences, that end elsewhere in each row; the first row starts in sequence 0."""
    steps = torch.arange(seqlen)
    rows = [
        torch.bucketize(steps, torch.tensor(ends), right=True) + first
        for first, ends in ((0, [seqlen // 3, seqlen // 2]), (1, [seqlen // 4, seqlen - 2]))
    ]
    return torch.stack(rows)


def leaves(tensors: Tensors, dtype: torch.dtype | dict[str, torch.dtype]) -> Tensors:
    """The tensors rounded to ``dtype``, as leaves that require gradients."""
    return {
        name: tensor.to(dtype.get(name, torch.float32) if isinstance(dtype, dict) else dtype)
        .detach()
        .requires_grad_()
        for name, tensor in tensors.items()
    }


def results_and_gradients(
    function: Callable[..., Any], tensors: Tensors, weights: list[Tensor], **options: Any
) -> Tensors:
    """Output, last state, and the gradients of a weighted sum of both, by name."""
    out, state, *_ = function(**tensors, **options)
    total = sum((r.double() * w).sum() for r, w in zip((out, state), weights))
    gradients = torch.autograd.grad(total, list(tensors.values()))
    return {"out": out, "state": state, **dict(zip(tensors, gradients))}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Within the tolerance of expected; exactly zero where that is zero."""
    if expected.any():
        assert relative_norm(actual, expected) < tolerance, name
    else:
        assert not actual.any(), name


def assert_agrees(
    function: Callable[..., Any],
    reference: Callable[..., Any],
    tensors: Tensors,
    dtype: torch.dtype | dict[str, torch.dtype],
    tolerance: float,
    **options: Any,
) -> None:
    """Outputs and gradients of function are those of reference on the same rounded values."""
    given = leaves(tensors, dtype)
    exact = leaves({name: tensor.detach() for name, tensor in given.items()}, torch.float64)
    out, state, *_ = reference(**exact, **options)
    # Rounded to 8 bits, so that as a gradient of the output every dtype holds them exactly.
    weights = [random(*result.shape).bfloat16().double() for result in (out, state)]
    expected = results_and_gradients(reference, exact, weights, **options)
    actual = results_and_gradients(
        function, given, weights, chunk_size=256, return_final_states=True, **options
    )
    for name, value in expected.items():
        assert_near(actual[name], value, tolerance, name)
        if name in given:
            assert actual[name].dtype == given[name].dtype, name


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("seqlen", [1, 7, 64, 150])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_scan_agrees_with_the_recurrence(dtype: torch.dtype, seqlen: int) -> None:
    assert_agrees(
        scan,
        ssd_scan,
        scan_tensors(seqlen),
        dtype,
        TOLERANCE[dtype],
        dt_softplus=True,
    )


@pytest.mark.parametrize("left_out", ["z", "D", "dt_bias", "initial_states"])
def test_scan_does_without_each_optional_tensor(left_out: str) -> None:
    tensors = scan_tensors(70)
    del tensors[left_out]
    assert_agrees(scan, ssd_scan, tensors, torch.float32, 1e-5, dt_softplus=True)


@pytest.mark.parametrize("ngroups", [1, 2, 4])
@pytest.mark.parametrize("D", [None, "nheads", "headdim"])
def test_scan_takes_groups_and_either_form_of_d(ngroups: int, D: str | None) -> None:
    tensors = scan_tensors(70, ngroups, D)
    assert_agrees(scan, ssd_scan, tensors, torch.float32, 1e-5, dt_softplus=True)


@pytest.mark.parametrize("softplus", [True, False])
def test_steps_outside_the_limits_have_no_gradient(softplus: bool) -> None:
    tensors = scan_tensors(70)
    limit = (0.2, 0.9)
    assert_agrees(
        scan,
        ssd_scan,
        tensors,
        torch.float32,
        1e-5,
        dt_softplus=softplus,
        dt_limit=limit,
    )
    given = leaves(tensors, torch.float64)
    out = scan(**given, chunk_size=64, dt_softplus=softplus, dt_limit=limit)
    (ddt,) = torch.autograd.grad(out.sum(), given["dt"])
    step = given["dt"] + given["dt_bias"]
    step = torch.nn.functional.softplus(step) if softplus else step
    outside = (step < limit[0]) | (step > limit[1])
    assert outside.any()
    assert not ddt[outside].any()
    assert ddt[~outside].all()


@pytest.mark.parametrize("softplus", [True, False])
def test_a_step_at_a_limit_is_within_it(softplus: bool) -> None:
    tensors = scan_tensors(70)
    del tensors["dt_bias"]
    lowest, highest = 0.25, 0.75
    raw = tensors["dt"].clamp(lowest, highest)
    raw[:, 1::3], raw[:, ::3] = lowest, highest
    tensors["dt"] = raw
    limit = (lowest, highest)
    if softplus:
        limit = tuple(torch.nn.functional.softplus(torch.tensor(limit).double()).tolist())
    options = {"dt_softplus": softplus, "dt_limit": limit}
    assert_agrees(scan, ssd_scan, tensors, torch.float64, 1e-12, **options)
    given = leaves(tensors, torch.float64)
    out = scan(**given, chunk_size=64, **options)
    (ddt,) = torch.autograd.grad(out.sum(), given["dt"])
    assert ddt.all()


@pytest.mark.parametrize("larger", [20.0, 40.0, 800.0])
def test_a_step_past_the_threshold_of_softplus_is_its_argument(larger: float) -> None:
    tensors = scan_tensors(9)
    tensors["dt"][:, ::2] += larger
    tensors["A"] = tensors["A"] / larger
    assert_agrees(scan, ssd_scan, tensors, torch.float64, 1e-8, dt_softplus=True)


@pytest.mark.parametrize("name", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states"])
def test_one_argument_in_float64_has_all_computed_in_it(name: str) -> None:
    """The sums are then not rounded to float32, whichever it is."""
    single = {each: tensor.float() for each, tensor in scan_tensors(70).items()}
    options = {"dt_softplus": True, "return_final_states": True, "chunk_size": 64}
    exact = scan(**{each: tensor.double() for each, tensor in single.items()}, **options)
    found = scan(**{**single, name: single[name].double()}, **options)
    for result, right in zip(found, exact):
        assert torch.equal(result, right.to(result.dtype))


def test_results_do_not_depend_on_chunk_size() -> None:
    tensors = scan_tensors(100)
    expected = scan(**tensors, chunk_size=16)
    for chunk_size in (1, 64, 100, 1000):
        assert torch.equal(scan(**tensors, chunk_size=chunk_size), expected)


@pytest.mark.parametrize("elements", [1, 1 << 30])
def test_results_do_not_depend_on_blocks(elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jetson_mamba.ops.ssd.block.BLOCK_ELEMENTS_CPU", elements)
    assert_agrees(
        scan,
        ssd_scan,
        scan_tensors(330),
        torch.float32,
        1e-5,
        dt_softplus=True,
        seq_idx=packed(330),
    )


def test_extreme_decays_stay_finite_and_exact() -> None:
    tensors = scan_tensors(130)
    tensors["A"] = torch.tensor([-1e-6, -1.0, -50.0, -1e4], dtype=torch.float64)
    assert_agrees(scan, ssd_scan, tensors, torch.float32, 1e-5, dt_softplus=True)


@pytest.mark.parametrize("left_out", ["initial_states", None])
def test_scan_passes_gradcheck(left_out: str | None) -> None:
    tensors = {name: t[:1] if t.dim() > 2 else t for name, t in scan_tensors(4).items()}
    tensors.pop(left_out or "", None)
    seq_idx = torch.tensor([[0, 0, 1, 1]])

    def function(*values: Tensor) -> Any:
        return scan(
            **dict(zip(tensors, values)),
            chunk_size=64,
            seq_idx=seq_idx,
            dt_softplus=True,
            return_final_states=True,
        )

    assert torch.autograd.gradcheck(function, list(leaves(tensors, torch.float64).values()))


@pytest.mark.parametrize(
    "wanted", ["x", "dt", "A", "B", "C", "D", "z", "dt_bias", "initial_states"]
)
def test_any_one_argument_alone_may_require_a_gradient(wanted: str) -> None:
    tensors = scan_tensors(20)
    everything = leaves(tensors, torch.float64)
    out = scan(**everything, chunk_size=64)
    (expected,) = torch.autograd.grad(out.sum(), everything[wanted])
    tensors[wanted].requires_grad_()
    out = scan(**tensors, chunk_size=64)
    (actual,) = torch.autograd.grad(out.sum(), tensors[wanted])
    assert torch.equal(actual, expected)


def test_one_tensor_may_be_passed_twice() -> None:
    tensors = scan_tensors(70)
    once = leaves(tensors, torch.float64)
    out = scan(**{**once, "C": once["B"], "z": once["x"]}, chunk_size=64)
    twice = {**once, "C": once["B"].clone(), "z": once["x"].clone()}
    expected = scan(**twice, chunk_size=64)
    assert torch.equal(out, expected)
    for name in ("B", "x"):
        (actual,) = torch.autograd.grad(out.sum(), once[name], retain_graph=True)
        (wanted,) = torch.autograd.grad(expected.sum(), once[name], retain_graph=True)
        assert relative_norm(actual, wanted) < 1e-13


def test_strides_do_not_matter() -> None:
    tensors = leaves(scan_tensors(70), torch.float64)
    mixed = {
        name: t.detach().movedim(-1, 0).contiguous().movedim(0, -1).requires_grad_()
        for name, t in tensors.items()
    }
    expected = scan(**tensors, chunk_size=64)
    actual = scan(**mixed, chunk_size=64)
    assert relative_norm(actual, expected) < 1e-14
    dout = torch.randn_like(expected).movedim(1, 3).contiguous().movedim(3, 1)
    for a, b in zip(
        torch.autograd.grad(actual, list(mixed.values()), dout),
        torch.autograd.grad(expected, list(tensors.values()), dout),
    ):
        assert relative_norm(a, b) < 1e-13


def test_autocast_leaves_the_scan_alone() -> None:
    tensors = leaves(scan_tensors(70), torch.float32)
    expected = scan(**tensors, chunk_size=64)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = scan(**tensors, chunk_size=64)
        assert torch.equal(out, expected)
        (actual,) = torch.autograd.grad(out.sum(), tensors["B"])
    (wanted,) = torch.autograd.grad(expected.sum(), tensors["B"])
    assert torch.equal(actual, wanted)


def test_half_precision_with_float32_parameters_gives_upstreams_dtypes() -> None:
    dtypes = dict.fromkeys(("x", "dt", "B", "C", "z"), torch.bfloat16)
    tensors = leaves(scan_tensors(20), dtypes)
    out, state = scan(**tensors, chunk_size=64, return_final_states=True)
    assert out.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert_agrees(
        scan,
        ssd_scan,
        scan_tensors(150),
        dtypes,
        TOLERANCE[torch.bfloat16],
        dt_softplus=True,
    )


def test_memory_between_the_passes_is_the_inputs_and_few_states() -> None:
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.numel()
        return tensor

    tensors = leaves(scan_tensors(1000), torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        scan(**tensors, chunk_size=64)
    inputs = sum(tensor.numel() for tensor in tensors.values())
    states = math.ceil(1000 / 64) * BATCH * NHEADS * HEADDIM * DSTATE
    assert inputs <= saved <= inputs + states


MIXERS: dict[str, tuple[dict[str, Any], dict[str, Any], tuple[str, ...]]] = {
    "as a Mamba-2 block": ({}, {}, ("initial_states", "outproj_bias")),
    "norm after the gate": ({}, {"norm_before_gate": False}, ()),
    "groups": ({"ngroups": 2}, {}, ()),
    "groups, norm after the gate": ({"ngroups": 2}, {"norm_before_gate": False}, ()),
    "no norm": ({}, {}, ("rmsnorm_weight",)),
    "gated MLP": ({"mlp": 6}, {}, ()),
    "gated MLP, no norm": ({"mlp": 6}, {}, ("rmsnorm_weight",)),
    "gated MLP, no projection": ({"mlp": 6}, {}, ("outproj_weight", "outproj_bias")),
    "no projection": ({}, {}, ("outproj_weight", "outproj_bias")),
    "bare": ({}, {}, ("rmsnorm_weight", "outproj_weight", "outproj_bias")),
    "no activation": ({}, {"activation": None}, ()),
    "no conv bias": ({}, {}, ("conv1d_bias",)),
    "limits": ({}, {"dt_limit": (0.3, 1.2)}, ()),
    "D per channel": ({"per_channel_D": True}, {}, ()),
}


def mixer_case(case: str, seqlen: int) -> tuple[Tensors, dict[str, Any]]:
    sizes, options, left_out = MIXERS[case]
    tensors = mixer_tensors(seqlen, **sizes)
    for name in left_out:
        del tensors[name]
    options = {"ngroups": sizes.get("ngroups", 1), **options}
    if tensors["D"].dim() == 1:
        options["headdim"] = HEADDIM
    if "conv1d_bias" in left_out:
        options["conv1d_bias"] = None
    return tensors, options


def test_a_scan_without_gradients_gives_what_one_with_gradients_gives() -> None:
    given = leaves(scan_tensors(70), torch.float32)
    options = {"dt_softplus": True, "seq_idx": packed(70), "return_final_states": True}
    expected = scan(**given, **options, chunk_size=64)
    with torch.inference_mode():
        found = scan(**given, **options, chunk_size=64)
    for actual, wanted in zip(found, expected):
        assert torch.equal(actual, wanted)


def test_limits_may_be_a_list_as_json_has_them() -> None:
    tensors = scan_tensors(20)
    for limit in ([0.1, 0.5], (0.1, 0.5)):
        found = scan(**tensors, chunk_size=64, dt_limit=limit)
        assert torch.equal(found, scan(**tensors, chunk_size=64, dt_limit=(0.1, 0.5)))
