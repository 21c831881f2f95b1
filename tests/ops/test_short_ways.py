"""Ways that save work are taken where they serve.

What they give is what the long ones give, so whoever compares results sees none of them missing.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import computation
from jetson_mamba.ops import (
    causal_conv1d_fn,
    mamba_split_conv1d_scan_combined,
    selective_scan_fn,
)
from jetson_mamba.ops.causal_conv1d import autograd as convolving
from jetson_mamba.ops.causal_conv1d import op as convolution
from jetson_mamba.ops.selective_scan import contract as scan_contract
from jetson_mamba.ops.selective_scan import library as scan_library
from jetson_mamba.ops.selective_scan import op as scan_op
from jetson_mamba.ops.ssd import block, chunks, library, mixer, narrow, op, pytorch
from jetson_mamba.ops.ssd.contract import MIXER, Mixer, Scan
from tests.gpu.ssd_cases import drawn
from tests.ops.test_ssd import mixer_case

Patch = pytest.MonkeyPatch


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError("the long way")


def of_mixer(seqlen: int = 70, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    torch.manual_seed(0)
    tensors, options = mixer_case("as a Mamba-2 block", seqlen)
    return {**{name: each.to(dtype) for name, each in tensors.items()}, **options}


def test_a_convolution_without_gradients_and_states_goes_straight_to_its_backend(
    monkeypatch: Patch,
) -> None:
    monkeypatch.setattr(convolution, "_launched", never)
    x, weight = torch.randn(2, 8, 20), torch.randn(8, 4)
    with torch.no_grad():
        assert causal_conv1d_fn(x, weight).shape == x.shape
        with pytest.raises(AssertionError, match="the long way"):
            causal_conv1d_fn(x, weight, return_final_states=True)
    with pytest.raises(AssertionError, match="the long way"):
        causal_conv1d_fn(x, weight)


def test_a_scan_without_gradients_makes_its_output_alone(monkeypatch: Patch) -> None:
    monkeypatch.setattr(scan_op, "differentiable", never)
    u, A, B = torch.randn(2, 8, 20), -torch.rand(8, 3), torch.randn(2, 3, 20)
    given = (u, u, A, B, B)
    with torch.no_grad():
        out = selective_scan_fn(*given)
        assert isinstance(out, Tensor) and out.shape == u.shape
        with pytest.raises(AssertionError, match="the long way"):
            selective_scan_fn(*given, return_last_state=True)
    with pytest.raises(AssertionError, match="the long way"):
        selective_scan_fn(*given)


def test_a_mixer_of_which_the_like_was_checked_is_not_checked_again(monkeypatch: Patch) -> None:
    given = of_mixer(seqlen=37)
    mamba_split_conv1d_scan_combined(**given, chunk_size=64)
    monkeypatch.setattr(op, "check_mixer", never)
    mamba_split_conv1d_scan_combined(**given, chunk_size=64)
    with torch.no_grad():
        mamba_split_conv1d_scan_combined(**given, chunk_size=64)
    for name, other in (
        ("zxbcdt", given["zxbcdt"].repeat(1, 2, 1)),
        ("A", given["A"].double()),
        ("outproj_weight", None),
        ("activation", None),
    ):
        with pytest.raises(AssertionError, match="the long way"):
            mamba_split_conv1d_scan_combined(**{**given, name: other}, chunk_size=64)


def test_a_backend_that_was_chosen_is_not_chosen_again(monkeypatch: Patch) -> None:
    given = as_mixer(of_mixer())
    x, weight = torch.randn(2, 8, 20), torch.randn(8, 4)
    found = op._implementation(given), convolution._implementation(x, weight)
    for each in (op, convolution):
        monkeypatch.setattr(each.OP, "implementation", never)
    assert op._implementation(given) is found[0]
    assert convolution._implementation(x, weight) is found[1]


def test_the_convolution_in_a_mixer_that_fits_is_not_checked(monkeypatch: Patch) -> None:
    for name in ("causal_conv1d_fn", "causal_conv1d_bwd"):
        monkeypatch.setattr(mixer, name, never)
    given = of_mixer()
    given.pop("initial_states", None)
    given["zxbcdt"].requires_grad_()
    out: Any = mamba_split_conv1d_scan_combined(**given, chunk_size=64)
    torch.autograd.grad(out.sum(), given["zxbcdt"])
    # Of several dtypes it takes the long way.
    weights = {"conv1d_weight": given["conv1d_weight"].double()}
    with pytest.raises(AssertionError, match="the long way"):
        mamba_split_conv1d_scan_combined(**{**given, **weights}, chunk_size=64)


class Kept(SimpleNamespace):
    """What autograd hands to a function, as far as keeping goes."""

    materializes = True

    def set_materialize_grads(self, value: bool) -> None:
        """Note it."""
        self.materializes = value

    def save_for_backward(self, *tensors: Any) -> None:
        """Note them."""
        self.saved = tensors


def as_mixer(given: dict[str, Any]) -> Mixer:
    """The same as a backend is given it."""
    usual = {"chunk_size": 64, "dt_limit": (0.0, 10.0), "last_state": True, "ngroups": 1}
    known = {name: each for name, each in given.items() if name in Mixer._fields}
    return Mixer(**{**dict.fromkeys(Mixer._fields), **usual, "activation": "silu", **known})


def keep_of_convolution(ctx: Kept) -> None:
    x = torch.randn(2, 8, 20)
    serves = SimpleNamespace(forward=lambda *_: x)
    arguments = (x, torch.randn(8, 4), None, None, None, True, None, serves)
    convolving._CausalConv1d.forward(ctx, *arguments)


def keep_of_computation(ctx: Kept) -> None:
    given = as_mixer(of_mixer())
    tensors, options = MIXER.unpack(given)
    found = computation.Computation(MIXER, lambda _: (tensors, ()), never, never)
    computation._Function.forward(ctx, *tensors, found, options, ())


def keep_of_gradients(ctx: Kept) -> None:
    library._keep_all(ctx, (torch.zeros(1), 1, None), ())


def keep_of_core(ctx: Kept) -> None:
    given = as_mixer(of_mixer())._asdict()
    arguments = tuple(given.get(name, 0.0) for name in library._CoreArguments._fields)
    library._keep_core(ctx, arguments, tuple(torch.zeros(1) for _ in range(5)))


@pytest.mark.parametrize(
    "keep", [keep_of_convolution, keep_of_computation, keep_of_gradients, keep_of_core]
)
def test_for_a_result_without_a_gradient_no_zeros_are_made(keep: Callable[[Kept], None]) -> None:
    ctx = Kept()
    keep(ctx)
    assert ctx.materializes is False


@pytest.mark.parametrize(("device", "is_asked"), [("meta", False), ("cpu", True)])
def test_no_backend_is_asked_for_the_rows_of_meta_tensors(device: str, is_asked: bool) -> None:
    asked: list[Any] = []

    def choose(case: Any) -> Any:
        asked.append(case)
        raise RuntimeError("none serves")

    operators = scan_library.Operators.__new__(scan_library.Operators)
    operators._choose = choose
    case = scan_contract.Case(torch.device(device), torch.float32, False, 3)
    assert operators._rows(case) is scan_contract.upstream_rows
    assert asked == ([case] if is_asked else [])


def test_signs_are_looked_for_where_steps_may_be_negative() -> None:
    of = block.Block(0, 2, 64)

    def signs(softplus: bool, low: float) -> Tensor | None:
        scan = drawn(dtype=torch.float32, softplus=softplus, limit=(low, 10.0))
        return block.Local(scan, scan.dt.float(), None, of).signs

    assert signs(True, 0.0) is None
    for found in (signs(False, 0.0), signs(True, -1.0)):
        assert found is not None and set(found.unique().tolist()) <= {-1.0, 1.0}


@pytest.mark.parametrize(("nchunks", "last"), [(1, False), (1, True), (2, False)])
def test_the_state_after_a_single_chunk_is_made_for_who_looks_at_it(
    nchunks: int, last: bool
) -> None:
    scan = drawn(dtype=torch.float32)
    local = block.Local(scan, scan.dt.float().abs(), None, block.Block(0, nchunks, 64))
    state = torch.randn(1, 1, 2 * 64, 128)
    starts, after = local.states(state, last)
    assert starts.shape == (nchunks, *state.shape) and torch.equal(starts[0], state)
    assert (after is state) == (nchunks == 1 and not last)


@pytest.mark.parametrize("seqlen", [10, 64, 70, 200])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_a_last_state_that_nobody_looks_at_changes_no_output(
    seqlen: int, first: bool, recorded: bool
) -> None:
    given = drawn(seqlen=seqlen, first=first, dtype=torch.float32)
    outs, gradients = [], []
    for last_state in (True, False):
        scan = given._replace(last_state=last_state, x=given.x.clone().requires_grad_(recorded))
        out = (pytorch.scan if recorded else pytorch.scan_forward)(scan)[0]
        outs.append(out)
        if recorded:
            gradients.append(torch.autograd.grad(out.square().sum(), scan.x)[0])
    assert torch.equal(*outs)
    assert not gradients or torch.equal(*gradients)


def test_a_state_that_is_not_there_is_given_where_nobody_looks_at_it() -> None:
    scan = drawn(dtype=torch.float32)
    nothing = torch.empty(0)
    assert chunks.public_state(nothing, scan._replace(last_state=False)) is nothing
    state = torch.randn(1, 1, 2 * 64, 128)
    for last_state in (True, False):
        found = chunks.public_state(state, scan._replace(last_state=last_state))
        assert found.shape == (1, 2, 64, 128)


def test_on_a_gpu_a_mixers_parts_are_widened_at_once(monkeypatch: Patch) -> None:
    """Where the products of narrow tensors do not serve."""
    given = of_mixer(dtype=torch.bfloat16)
    given.pop("initial_states", None)
    wide = {name: given[name].float() for name in ("dt_bias", "A", "D")}
    found = as_mixer({**given, **wide})
    columns = mixer.split_columns(found, found.zxbcdt)
    xBC = mixer.convolved_by_kernels(found, columns)

    def dtype() -> torch.dtype:
        scan: Scan = pytorch._widened(found, columns, xBC)
        assert (scan.z is None) == (found.rmsnorm_weight is not None)
        return scan.x.dtype

    assert xBC.dtype == dtype() == torch.bfloat16
    monkeypatch.setattr(Tensor, "is_cuda", True)
    for serves, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(narrow, "serves", lambda scan, serves=serves: serves)
        assert dtype() == expected
