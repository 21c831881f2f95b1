"""Mamba-2's scan with factors in bfloat16, as a GPU computes it, against float64 on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.ssd import block, narrow, short
from tests.ops.test_ssd import (
    TOLERANCE,
    leaves,
    mixer,
    mixer_tensors,
    packed,
    random,
    results_and_gradients,
    scan,
    scan_tensors,
)
from tests.references.ssd import ssd_mixer, ssd_scan
from tests.references.tolerance import relative_norm

BRAIN = torch.bfloat16
DTYPES = dict.fromkeys(("x", "dt", "B", "C", "z"), BRAIN)
# Sums over all steps, in which rounded terms cancel.
TOLERANCES = dict.fromkeys(("A", "D", "dt_bias"), 5e-2)
# Of a scan, whose arguments are what they are; a mixer's convolution rounds what is written.
OF_STATE = 1e-5


class Served:
    """How many scans were computed with narrow factors."""

    def __init__(self) -> None:
        self.count = 0


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> Served:
    """Products of bfloat16 with sums in float32, which torch has for GPUs alone."""
    found = Served()
    operand_dtype, factors = block.operand_dtype, short.factors

    def as_on_a_gpu(given: Any) -> torch.dtype:
        is_narrow = all(each.dtype == BRAIN for each in (given.x, given.B, given.C))
        return BRAIN if is_narrow and given.dtype == torch.float32 else operand_dtype(given)

    def counted(*arguments: Any) -> Any:
        found.count += 1
        return factors(*arguments)

    monkeypatch.setattr(narrow, "operand_dtype", as_on_a_gpu)
    monkeypatch.setattr(narrow, "_wide", lambda a, b: a.float() @ b.float())
    monkeypatch.setattr(narrow, "FACTORS", counted)
    torch.manual_seed(0)
    return found


def tensors_of(seqlen: int, without: tuple[str, ...] = (), **options: Any) -> dict[str, Tensor]:
    found = scan_tensors(seqlen, **options)
    for name in ("z", *without):
        del found[name]
    return found


def assert_agrees(given: dict[str, Tensor], function: Any = scan, **options: Any) -> None:
    """Results and gradients are those of the recurrence in float64, but for roundings."""
    reference: Any = ssd_scan if function is scan else ssd_mixer
    scale = 1 if function is scan else 2
    dtypes = {name: DTYPES.get(name, torch.float32) for name in given}
    if function is mixer:  # whose convolution and norm round as well
        wide = ("A", "D", "dt_bias", "initial_states")
        dtypes = {name: torch.float32 if name in wide else BRAIN for name in given}
    else:
        options = {"dt_softplus": True, **options}
    low = leaves(given, dtypes)
    exact = leaves({name: each.detach() for name, each in low.items()}, torch.float64)
    shapes = [each.shape for each in reference(**exact, **options)[:2]]
    weights = [random(*shape).to(BRAIN).double() for shape in shapes]
    expected = results_and_gradients(reference, exact, weights, **options)
    found = results_and_gradients(
        function, low, weights, chunk_size=256, return_final_states=True, **options
    )
    for name, right in expected.items():
        tolerance = TOLERANCES.get(name, scale * TOLERANCE[BRAIN])
        if name == "state" and function is scan:
            tolerance = OF_STATE
        assert relative_norm(found[name], right) < tolerance, name


@pytest.mark.parametrize("seqlen", [1, 35, 64, 300])
@pytest.mark.parametrize("ngroups", [1, 2])
def test_every_gradient(seqlen: int, ngroups: int, served: Served) -> None:
    given = tensors_of(seqlen, ngroups=ngroups)
    assert_agrees(given)
    assert served.count >= 1


@pytest.mark.parametrize("without", ["initial_states", "D", "dt_bias"])
def test_what_is_not_given(without: str, served: Served) -> None:
    given = tensors_of(200, (without,))
    assert_agrees(given)
    assert served.count >= 1


@pytest.mark.parametrize("without", [(), ("initial_states",)])
def test_states_pass_between_blocks(
    without: tuple[str, ...], served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(block, "BLOCK_ELEMENTS_CPU", 1 << 16)
    given = tensors_of(700, without)
    assert_agrees(given)
    assert served.count > 2


@pytest.mark.parametrize("decay", [1e-3, 30.0, 3e38])
def test_decays_of_every_size(decay: float, served: Served) -> None:
    """The least and the largest; where nothing of a state is left, nothing is no number."""
    given = tensors_of(200)
    given["A"] = torch.full_like(given["A"], -decay)
    if decay < 1e38:
        assert_agrees(given)
    else:
        low = leaves(given, DTYPES)
        weights = [torch.ones_like(low["x"]), torch.ones_like(low["initial_states"])]
        found = results_and_gradients(
            scan, low, weights, chunk_size=64, dt_softplus=True, return_final_states=True
        )
        for name, each in found.items():
            assert each.isfinite().all(), name
    assert served.count >= 1


def test_limits_of_the_steps(served: Served) -> None:
    assert_agrees(tensors_of(150), dt_limit=(0.1, 0.5))
    assert served.count >= 1


def test_the_gradient_of_the_output_alone(served: Served) -> None:
    given = leaves(tensors_of(150), DTYPES)
    exact = {name: each.detach().double().requires_grad_() for name, each in given.items()}
    reference: Any = ssd_scan
    found = torch.autograd.grad(
        scan(**given, chunk_size=64, dt_softplus=True).sum(), list(given.values())
    )
    right = torch.autograd.grad(reference(**exact, dt_softplus=True)[0].sum(), list(exact.values()))
    for name, actual, expected in zip(given, found, right):
        assert relative_norm(actual, expected) < TOLERANCE[BRAIN], name
    assert served.count >= 1


def test_a_mixer(served: Served) -> None:
    assert_agrees(mixer_tensors(90), mixer, headdim=3)
    assert served.count >= 1


@pytest.mark.parametrize("others", ["gate", "sequences", "steps without softplus", "D by channel"])
def test_other_scans_are_computed_as_before(others: str, served: Served) -> None:
    options: dict[str, Any] = {}
    given = scan_tensors(70, D="channels") if others == "D by channel" else scan_tensors(70)
    if others != "gate":
        del given["z"]
    if others == "sequences":
        options["seq_idx"] = packed(70)
    if others == "steps without softplus":
        options["dt_softplus"] = False
        given["dt"] = given["dt"].abs()
    assert_agrees(given, **options)
    assert served.count == 0
