"""VMamba's extensions by their names: the scan without z, beside loops in float64."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.references.selective_scan import selective_scan_reference
from tests.references.tolerance import relative_norm

STAND_IN = "jetson_mamba.hook.stand_in.selective_scan_cuda"
# Here, not in the first test that needs one: what an import does is no test's doing.
MODULES: dict[str, Any] = {
    name: import_module(f"{STAND_IN}_{name}") for name in ("core", "oflex", "nrow", "ndstate")
}
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 1e-2}


def arguments(dtype: torch.dtype, dstate: int = 4, runs: int = 1) -> list[Tensor]:
    """u, delta, A, B, C, D, delta_bias; each row of delta is for ``runs`` of u's."""
    torch.manual_seed(0)
    u, dim = torch.randn(2, 8, 11), 8
    delta = torch.randn(2, dim // runs, 11)
    B, C = torch.randn(2, 2, 2, dstate, 11)
    wide = [-torch.rand(dim, dstate), torch.randn(dim), torch.randn(dim // runs)]
    signals = [each.to(dtype) for each in (u, delta, B, C)]
    A, D, bias = (each.double() if dtype == torch.float64 else each for each in wide)
    return [*signals[:2], A, *signals[2:], D, bias]


def expected(given: list[Tensor], dout: Tensor, runs: int = 1) -> tuple[Tensor, Tensor, Any]:
    leaves = [each.double().requires_grad_() for each in given]
    u, delta, A, B, C, D, bias = leaves
    scan: Any = selective_scan_reference
    delta, bias = delta.repeat_interleave(runs, 1), bias.repeat_interleave(runs, 0)
    out, _, states, _ = scan(u, delta, A, B, C, D, None, bias, True)
    return out, states[..., -1], torch.autograd.grad(out, leaves, dout.double())


@pytest.mark.parametrize("name", ["core", "oflex", "nrow"])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_scan_and_its_gradients(name: str, dtype: torch.dtype) -> None:
    given, tolerance = arguments(dtype), TOLERANCES[dtype]
    dout = torch.randn(2, 8, 11).to(dtype)
    right, last, gradients = expected(given, dout)
    out, x = MODULES[name].fwd(*given, True, 1)
    assert out.dtype == dtype and relative_norm(out, right) < tolerance
    assert relative_norm(x[:, :, -1, 1::2], last) < tolerance
    found = MODULES[name].bwd(*given, dout, x, True, 1)
    assert len(found) == 7
    for actual, gradient, of in zip(found, gradients, given):
        assert actual.dtype == of.dtype and relative_norm(actual, gradient) < 2 * tolerance


def test_an_output_in_float32_and_a_step_for_several_channels() -> None:
    given = arguments(torch.bfloat16, runs=4)
    dout = torch.randn(2, 8, 11)
    right, _, gradients = expected(given, dout, runs=4)
    out, x = MODULES["oflex"].fwd(*given, True, 1, True)
    assert out.dtype == torch.float32 and relative_norm(out, right) < 1e-5
    assert MODULES["oflex"].fwd(*given, True, 1, False)[0].dtype == torch.bfloat16
    for actual, gradient, of in zip(
        MODULES["oflex"].bwd(*given, dout, x, True, 1), gradients, given
    ):
        assert actual.shape == of.shape and relative_norm(actual, gradient) < 2e-2


def test_one_state_for_each_channel() -> None:
    given = arguments(torch.float64, dstate=1)
    dout = torch.randn(2, 8, 11).double()
    right, _, gradients = expected(given, dout)
    u, delta, A, B, C, *rest = given
    flat = [u, delta, A.squeeze(1), B.squeeze(2), C.squeeze(2), *rest]
    out, x = MODULES["ndstate"].fwd(*flat, True, 1)
    assert relative_norm(out, right) < 1e-12 and x.shape == (2, 8, 1, 2)
    for actual, gradient, of in zip(
        MODULES["ndstate"].bwd(*flat, dout, x, True, 1), gradients, flat
    ):
        assert relative_norm(actual, gradient.reshape(of.shape)) < 1e-12


@pytest.mark.parametrize("name", ["core", "oflex", "nrow"])
def test_a_call_as_of_mamba_ssm_is_one(name: str) -> None:
    *given, bias = arguments(torch.float64)
    z, dout = torch.randn(2, 2, 8, 11, dtype=torch.float64)
    own: Any = import_module(STAND_IN)
    for gate in (None, z):
        results = MODULES[name].fwd(*given, gate, bias, True)
        for actual, right in zip(results, own.fwd(*given, gate, bias, True)):
            assert torch.equal(actual, right)
        backward = (*given, gate, bias, dout, results[1], results[0], None, True, False)
        for actual, right in zip(MODULES[name].bwd(*backward), own.bwd(*backward)):
            assert torch.equal(actual, right)


@pytest.mark.parametrize("name", ["core", "oflex", "nrow", "ndstate"])
def test_a_call_that_is_none_names_the_function(name: str) -> None:
    given = arguments(torch.float32)
    for call, counts in (("fwd", "8 or 9"), ("bwd", "10 or 11")):
        with pytest.raises(TypeError) as raised:
            getattr(MODULES[name], call)(*given)
        assert str(raised.value) == (
            f"selective_scan_cuda_{name}.{call}(): incompatible function arguments: "
            f"expected {counts}, found 7"
        )
        with pytest.raises(TypeError, match=rf"expected {counts}, found 15"):
            getattr(MODULES[name], call)(*given, *[True] * 8)


@pytest.mark.parametrize("lacks", ["D", "delta_bias", "both"])
@pytest.mark.parametrize("runs", [1, 4, 8])
def test_what_is_not_given_has_no_gradient(lacks: str, runs: int) -> None:
    given: list[Any] = arguments(torch.float64, runs=runs)
    places = [place for place, name in ((5, "D"), (6, "delta_bias")) if lacks in (name, "both")]
    for place in places:
        given[place] = torch.zeros_like(given[place])
    dout = torch.randn(2, 8, 11).double()
    right, _, gradients = expected(given, dout, runs)
    for place in places:
        given[place] = None
    out, x = MODULES["core"].fwd(*given, True, 1)
    assert relative_norm(out, right) < 1e-12
    found = MODULES["core"].bwd(*given, dout, x, True, 1)
    for place, (actual, gradient) in enumerate(zip(found, gradients)):
        if place in places:
            assert actual is None
        else:
            assert relative_norm(actual, gradient) < 1e-12
