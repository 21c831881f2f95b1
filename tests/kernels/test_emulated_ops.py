"""The ops go by their kernels on a GPU, which is imitated.

Tensors say that they are on a GPU and the kernels run on a CPU, so that what a call of an op does
there is done here.
"""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.kernels import compiler
from jetson_mamba.ops import layer_norm_fn, rms_norm_fn, selective_state_update
from jetson_mamba.ops.decoding import cuda as decoding_cuda
from jetson_mamba.ops.decoding import op as decoding
from jetson_mamba.ops.norms import cuda, serving
from jetson_mamba.ops.norms import op as norms
from jetson_mamba.ops.ssd import gated_norm
from jetson_mamba.ops.ssd.gates import GatedRMSNorm
from tests.kernels.emulated import emulate, serve
from tests.references.tolerance import relative_norm

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
ROWS, DIM = (2, 3), 32


@pytest.fixture
def launched(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that were launched after their trial, in order; on a GPU from here on."""
    emulate(monkeypatch, libraries)
    names: list[str] = []
    load: Any = compiler.load

    def noting(source: str, entry: str, defines: Any, index: int) -> Any:
        kernel = load(source, entry, defines, index)

        def run(*arguments: Any) -> None:
            names.append(entry)
            kernel.run(*arguments)

        return SimpleNamespace(run=run)

    monkeypatch.setattr(compiler, "load", noting)
    for module in (cuda, decoding_cuda):
        serve(monkeypatch, module)
    for module, name in ((serving, "norms"), (decoding, "step")):
        of: Any = module.OP
        monkeypatch.setattr(module, "OP", Op(name, of._package, of.order, of._trial))
    monkeypatch.setattr(norms, "triton_runs_on", lambda device: False)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    return names


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape)


def given() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "x": drawn(*ROWS, DIM),
        "weight": torch.rand(DIM) + 0.5,
        "bias": drawn(DIM),
        "residual": drawn(*ROWS, DIM),
        "z": drawn(*ROWS, DIM),
    }


Function = Callable[[dict[str, Tensor]], Any]
SERVED: dict[str, Function] = {
    "norm": lambda of: rms_norm_fn(of["x"], of["weight"], None),
    "of the mean": lambda of: layer_norm_fn(of["x"], of["weight"], of["bias"]),
    "sum": lambda of: rms_norm_fn(
        of["x"], of["weight"], of["bias"], residual=of["residual"], prenorm=True
    ),
    "sum that is not asked for": lambda of: rms_norm_fn(
        of["x"], of["weight"], None, residual=of["residual"]
    ),
    "gated before": lambda of: norms.rmsnorm_fn(
        of["x"], of["weight"], None, of["z"], norm_before_gate=False
    ),
    "gated after, in groups": lambda of: norms.layernorm_fn(
        of["x"], of["weight"], of["bias"], of["z"], group_size=DIM // 2
    ),
}


def results(function: Function, of: dict[str, Tensor], again: bool = False) -> list[Tensor]:
    """What it returns, and the gradients of all that it is given, or those of these."""
    leaves = {name: each.clone().requires_grad_() for name, each in of.items()}
    found = function(leaves)
    outs = [found] if isinstance(found, Tensor) else [*found]
    loss = sum((each.double().square() * (place + 1)).sum() for place, each in enumerate(outs))
    assert isinstance(loss, Tensor)
    inputs = list(leaves.values())
    gradients = torch.autograd.grad(loss, inputs, allow_unused=True, create_graph=again)
    if again:
        total = sum(each.double().square().sum() for each in gradients if each is not None)
        assert isinstance(total, Tensor)
        gradients += torch.autograd.grad(total, inputs, allow_unused=True)
    return outs + [each for each in gradients if each is not None]


def exactly(function: Function, of: dict[str, Tensor], again: bool = False) -> list[Tensor]:
    """The same in float64, which no kernel takes."""
    return results(function, {name: each.double() for name, each in of.items()}, again)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", SERVED)
def test_a_norm_and_its_gradients_are_by_kernels(
    name: str, again: bool, launched: list[str]
) -> None:
    function, of = SERVED[name], given()
    found = results(function, of, again)
    assert launched[-3:] == ["norm_forward", "norm_backward", "norm_sum"]
    before = list(launched)
    for one, other in zip(found, exactly(function, of, again)):
        assert relative_norm(one, other) < 2e-5
    assert launched == before
    # Nothing is kept where nothing asks for a gradient.
    with torch.no_grad():
        outs = function(of)
    assert launched[len(before) :] == ["norm_forward"]
    for one, other in zip([outs] if isinstance(outs, Tensor) else outs, found):
        assert torch.equal(one, other)


LEFT: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "a bias of another dtype": lambda of: {"bias": of["bias"].half()},
    "no rows": lambda of: {"x": of["x"][:0], "z": of["z"][:0], "residual": of["residual"][:0]},
    "a weight of float64": lambda of: {"weight": of["weight"].double()},
}


@pytest.mark.parametrize("change", LEFT)
def test_what_the_kernels_do_not_take_is_computed_all_the_same(
    change: str, launched: list[str]
) -> None:
    of = given()
    of = {**of, **LEFT[change](of)}
    for function in (SERVED["of the mean"], SERVED["gated after, in groups"]):
        out = function(of)
        exact = function({name: each.double() for name, each in of.items()})
        assert out.dtype == torch.float32 and relative_norm(out, exact) < 1e-5
    assert "norm_forward" not in launched


@pytest.mark.parametrize(
    ("dim", "with_gradients"),
    [
        (cuda.LONGEST_FORWARD + 1, False),
        (cuda.LONGEST_BACKWARD + 2, True),
        (cuda.LONGEST_ODD + 1, True),
    ],
)
def test_rows_longer_than_registers_hold_are_left(
    dim: int, with_gradients: bool, launched: list[str]
) -> None:
    x, weight = drawn(2, dim), torch.rand(dim)
    with torch.set_grad_enabled(with_gradients):
        out = rms_norm_fn(x, weight, None)
    assert launched == []
    assert relative_norm(out, rms_norm_fn(x.double(), weight.double(), None)) < 1e-5


def step_of(batch: int = 2, groups: int = 1) -> list[Any]:
    torch.manual_seed(0)
    heads, dim, dstate = 2, 4, 8
    return [
        drawn(batch + 1, heads, dim, dstate),
        drawn(batch, heads, dim),
        torch.rand(batch, heads, dim),
        -torch.rand(heads, dim, dstate),
        drawn(batch, groups, dstate),
        drawn(batch, groups, dstate),
        drawn(heads, dim),
        drawn(batch, heads, dim),
        drawn(heads, dim),
    ]


@pytest.mark.parametrize("groups", [1, 2])
def test_a_step_is_by_its_kernel_and_counts_as_a_write(groups: int, launched: list[str]) -> None:
    step = step_of(groups=groups)
    exact = [each.double() for each in step]
    state = step[0]
    version = state._version
    out = selective_state_update(*step, *[True])
    assert launched[-1] == "state_update"
    assert state._version == version + 1
    count = len(launched)
    expected = selective_state_update(*exact, *[True])
    assert len(launched) == count
    assert relative_norm(out, expected) < 1e-5 and relative_norm(state, exact[0]) < 1e-5


def test_an_empty_step_launches_nothing(launched: list[str]) -> None:
    step = step_of(batch=0)
    assert selective_state_update(*step).shape == (0, 2, 4)
    assert launched == []


@pytest.mark.parametrize("op", ["norm", "step"])
def test_kernels_that_are_wrong_are_found_out_by_their_trial(
    op: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = cuda if op == "norm" else decoding_cuda
    load = module.load

    def wrong(case: Any) -> Any:
        right = load(case)
        if op == "step":
            return lambda step: right(step) * 2
        forward = lambda *given: right.forward(*given)._replace(  # noqa: E731
            out=right.forward(*given).out * 2
        )
        return right._replace(forward=forward)

    monkeypatch.setattr(module, "load", wrong)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if op == "norm":
            of = given()
            out = SERVED["norm"](of)
            expected = SERVED["norm"]({name: each.double() for name, each in of.items()})
        else:
            step = step_of()
            expected = selective_state_update(*[each.double() for each in step])
            out = selective_state_update(*step)
    assert relative_norm(out, expected) < 1e-5
    assert ["trial is wrong" in str(each.message) for each in said] == [True]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("room", ["rows", "columns of more", "steps apart", "another dtype"])
def test_a_block_s_norm_writes_the_gradient_of_its_gate_wherever_that_is(
    room: str, before: bool, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    norm = GatedRMSNorm(torch.rand(16) + 0.5, 1e-3, 8, before)
    x, z, dout = (drawn(2, 3, 16) for _ in range(3))
    rooms = {
        "rows": torch.zeros(2, 3, 16),
        "columns of more": torch.zeros(2, 3, 20)[..., 4:],
        "steps apart": torch.zeros(3, 2, 16).transpose(0, 1),
        "another dtype": torch.zeros(2, 3, 16, dtype=torch.float64),
    }
    dz = rooms[room]
    out, rstd = gated_norm.forward(norm, x, z, with_rstd=True)
    dx, dweight, _ = gated_norm.backward(norm, x, z, dout, dz)
    assert launched[-1] == ("norm_forward" if room == "another dtype" else "norm_sum")
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "is_cuda", False)
        plain = torch.zeros(2, 3, 16)
        right, right_rstd = gated_norm.forward(norm, x, z, with_rstd=True)
        right_dx, right_dweight, _ = gated_norm.backward(norm, x, z, dout, plain)
    assert rstd is not None and right_rstd is not None
    for one, other in (
        *((out, right), (rstd, right_rstd), (dx, right_dx), (dz, plain)),
        (dweight, right_dweight),
    ):
        assert relative_norm(one, other) < 1e-5
