"""What the convolution and the scan write in place: that it is counted, and in any dtype.

Backends that write by address are imitated by one that writes past PyTorch's count.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.in_place import _bump, count_write, version
from jetson_mamba.dispatch.paths import Way
from jetson_mamba.ops import causal_conv1d_bwd, causal_conv1d_fn, causal_conv1d_update
from jetson_mamba.ops.causal_conv1d import op as convolution
from jetson_mamba.ops.causal_conv1d import pytorch as convolving
from jetson_mamba.ops.selective_scan import op as scan
from jetson_mamba.ops.selective_scan import pytorch as scanning
from jetson_mamba.ops.selective_scan import selective_scan_bwd, selective_scan_fwd
from tests.ops.ways import going
from tests.references.causal_conv1d import convolve
from tests.references.tolerance import relative_norm


def uncounted(function: Any, written: Any) -> Any:
    """``function``, whose argument of a place, or of a name in one, is written uncounted."""

    def call(*arguments: Any) -> Any:
        given = list(arguments)
        place, field = written
        of = given[place] if field is None else getattr(given[place], field)
        if of is None:
            return function(*given)
        scratch = of.clone()
        given[place] = scratch if field is None else given[place]._replace(**{field: scratch})
        results = function(*given)
        of.data.copy_(scratch)
        if isinstance(results, tuple):
            kind = type(results)
            found = [of if each is scratch else each for each in results]
            return kind(*found) if hasattr(kind, "_fields") else tuple(found)
        return results

    return call


@pytest.fixture(params=["as PyTorch does", "by address"])
def backends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backends that write as PyTorch's operations do, or so that nothing counts it."""
    of_convolution, of_scan = convolving.IMPLEMENTATION, scanning.IMPLEMENTATION
    if request.param == "by address":
        of_convolution = of_convolution._replace(
            forward=uncounted(of_convolution.forward, (5, None)),
            backward=uncounted(of_convolution.backward, (7, None)),
            update=uncounted(of_convolution.update, (1, None)),
        )
        of_scan = of_scan._replace(backward=uncounted(of_scan.backward, (1, "dz")))
    monkeypatch.setattr(convolution, "_implementation", lambda x, weight: of_convolution)
    monkeypatch.setattr(convolution._OPERATORS, "_choose", lambda x, weight: of_convolution)
    monkeypatch.setattr(scan, "_backend", lambda case: of_scan)
    monkeypatch.setattr(scan._OPERATORS, "_choose", lambda case: of_scan)


def assert_counted(written: Tensor, before: int, saved: Tensor) -> None:
    """It is as torch has it of its own operations: the count is up, a saved tensor found out."""
    assert written._version > before
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def saves(tensor: Tensor) -> Tensor:
    return torch.ones(1, requires_grad=True) * tensor


each_way = pytest.mark.parametrize("way", list(Way))


@each_way
@pytest.mark.parametrize("recorded", [True, False])
def test_final_states_are_counted(backends: None, recorded: bool, way: Way) -> None:
    x, weight = torch.randn(2, 3, 5, requires_grad=recorded), torch.randn(3, 4)
    states = torch.zeros(2, 3, 3)
    saved, before = saves(states), states._version
    with going(way, convolution):
        causal_conv1d_fn(x, weight, final_states_out=states)
    assert torch.equal(states, x[..., 2:])
    assert_counted(states, before, saved)


@each_way
def test_a_state_is_counted(backends: None, way: Way) -> None:
    state = torch.zeros(2, 3, 4)
    saved, before = saves(state), state._version
    x = torch.randn(2, 3)
    with going(way, convolution):
        causal_conv1d_update(x, state, torch.randn(3, 4))
    assert torch.equal(state[..., -1], x)
    assert_counted(state, before, saved)


@each_way
def test_gradients_that_are_written_are_counted(backends: None, way: Way) -> None:
    x, weight, dx = torch.randn(2, 3, 5), torch.randn(3, 4), torch.zeros(2, 3, 5)
    saved, before = saves(dx), dx._version
    with going(way, convolution):
        found = causal_conv1d_bwd(x, weight, None, x, dx=dx)
    assert found[0] is dx and dx.any()
    assert_counted(dx, before, saved)

    u, A, B, dz = (
        torch.randn(2, 3, 5),
        -torch.rand(3, 2),
        torch.randn(2, 1, 2, 5),
        torch.zeros(2, 3, 5),
    )
    saved, before = saves(dz), dz._version
    with going(way, scan):
        out, states, _ = selective_scan_fwd(u, u, A, B, B, None, u, None, True)
        results = selective_scan_bwd(u, u, A, B, B, None, u, None, u, states, out, dz, True, True)
    assert results[7] is dz and dz.any()
    assert_counted(dz, before, saved)


def test_without_torchs_function_a_write_counts_as_well() -> None:
    whole = torch.ones(4, 5)
    for tensor in (whole, whole[:, 1:], whole.t()):
        before = version(tensor)
        _bump(tensor)
        assert before is not None and tensor._version > before
        assert tensor.all()


def test_tensors_of_inference_mode_have_no_count() -> None:
    with torch.inference_mode():
        tensor = torch.zeros(3)
        assert version(tensor) is None
        count_write(tensor, version(tensor))
        state = torch.zeros(2, 3, 4)
        causal_conv1d_update(torch.ones(2, 3), state, torch.randn(3, 4))
        assert state[..., -1].all()


OVERLAPS: dict[str, Any] = {
    "the same": lambda whole: (whole[..., :3], whole[..., :3]),
    "shifted": lambda whole: (whole[..., :3], whole[..., 1:4]),
    "shifted back": lambda whole: (whole[..., 1:4], whole[..., :3]),
    "apart in one memory": lambda whole: (whole[..., :3], whole[..., 3:]),
    "detached": lambda whole: (whole[..., :3], whole.detach()[..., :3]),
}


@each_way
@pytest.mark.parametrize("overlap", OVERLAPS)
@pytest.mark.parametrize("seqlen", [2, 10])
@pytest.mark.parametrize("recorded", [True, False])
def test_states_before_and_after_may_share_memory(
    backends: None, recorded: bool, seqlen: int, overlap: str, way: Way
) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 4, seqlen, dtype=torch.float64, requires_grad=recorded)
    weight = torch.randn(4, 4, dtype=torch.float64, requires_grad=recorded)
    initial, final = OVERLAPS[overlap](torch.randn(2, 4, 6, dtype=torch.float64))
    expected, after = convolve(x, weight, initial_states=initial.clone(), silu=True)
    with going(way, convolution):
        out = causal_conv1d_fn(
            x, weight, None, None, initial, final_states_out=final, activation="silu"
        )
        assert relative_norm(out, expected) < 1e-12
        assert torch.equal(final, after.detach())
        if recorded:
            found = torch.autograd.grad(out.square().sum(), (x, weight))
            right = torch.autograd.grad(expected.square().sum(), (x, weight))
            torch.testing.assert_close(found, right)


DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@each_way
@pytest.mark.parametrize("of_state", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_state_may_be_of_any_dtype(dtype: torch.dtype, of_state: torch.dtype, way: Way) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 4, 3).to(dtype), torch.randn(4, 4), torch.randn(4).double()
    state = torch.randn(2, 4, 5).to(of_state)
    held = state.clone()
    together = torch.cat((held.double(), x.double()), -1)
    with going(way, convolution):
        out = causal_conv1d_update(x, state, weight, bias, "silu")
    expected, _ = convolve(together, weight.double(), bias, silu=True)
    assert out.dtype == dtype and state.dtype == of_state
    assert relative_norm(out, expected[..., -3:]) < (1e-5 if torch.finfo(dtype).bits > 16 else 1e-2)
    # What it held it holds as exactly as before.
    assert torch.equal(state, together[..., -5:].to(of_state))


@each_way
@pytest.mark.parametrize("other", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_states_and_bias_of_a_sequence_may_be_of_any_dtype(
    dtype: torch.dtype, other: torch.dtype, way: Way
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2, 4, 9).to(dtype), torch.randn(4, 4).to(dtype)
    bias, initial = torch.randn(4).to(other), torch.randn(2, 4, 3).to(other)
    final = torch.zeros(2, 4, 3, dtype=other)
    leaves = [each.requires_grad_() for each in (x, weight, bias, initial)]
    wide = [each.detach().double().requires_grad_() for each in leaves]
    with going(way, convolution):
        out, states = causal_conv1d_fn(
            x, weight, bias, None, initial, True, final, activation="silu"
        )
        found = torch.autograd.grad(out.square().sum() + states.square().sum(), leaves)
    expected, after = convolve(wide[0], wide[1], wide[2], initial_states=wide[3], silu=True)
    right = torch.autograd.grad(expected.square().sum() + after.square().sum(), wide)
    tolerance = 3e-2 if 16 in (torch.finfo(dtype).bits, torch.finfo(other).bits) else 1e-5
    assert out.dtype == dtype and states.dtype == final.dtype == other
    assert torch.equal(final, states) and not final.requires_grad
    assert relative_norm(out, expected) < tolerance
    assert relative_norm(final, after) < tolerance
    for leaf, gradient, each in zip(leaves, found, right):
        assert gradient.dtype == leaf.dtype
        assert relative_norm(gradient, each) < tolerance
