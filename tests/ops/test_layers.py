"""A step by few kernels is held to the layer's own step.

A layer that is not plain takes its own.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.dispatch import backends
from jetson_mamba.dispatch.paths import inference_path
from jetson_mamba.kernels import compiler
from jetson_mamba.ops.decoding import layers
from jetson_mamba.ops.decoding.layers import in_few_kernels
from tests.kernels import layers as small
from tests.kernels.layers import LAYERS


class Kernels:
    """In place of the kernels: what the layer itself computes, times a factor."""

    made: list[Any]
    runs: int
    factor: float
    index = -1

    def __init__(self, of: Any, *given: Any) -> None:
        Kernels.made.append(of)

    def chain_of(self, weights: Any) -> None:
        """It launches none."""

    def __call__(self, chain: None, block: Any, *given: Any) -> Tensor:
        """Run."""
        Kernels.runs += 1
        out: Tensor = type(block).step(block, *given[:3])[0]
        return out * Kernels.factor


@pytest.fixture(autouse=True)
def imitated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Kernels.made, Kernels.runs, Kernels.factor = [], 0, 1.0
    for name in ("_MAMBA", "_MAMBA2"):
        monkeypatch.setattr(layers, name, getattr(layers, name)._replace(layer=Kernels))
    monkeypatch.setattr(layers, "_is_on_a_gpu", lambda tensor: True)
    monkeypatch.setattr(layers, "_is_capturing", lambda: False)
    monkeypatch.setattr(compiler, "current_device", lambda: -1)
    with torch.no_grad():
        yield


class Stepping:
    """A layer with states, and its step by kernels."""

    def __init__(self, name: str = "mamba", batch: int = 2) -> None:
        torch.manual_seed(0)
        self.block: Any = vars(LAYERS)[name]()
        self.states = self.block.states(batch, torch.float32)
        self.hidden = torch.randn(batch, 1, self.block.in_proj.weight.shape[1])
        self.few = in_few_kernels(type(self.block).step)

    def __call__(self) -> bool:
        """Take a step, hold it to the layer's own; whether kernels took it."""
        before = Kernels.runs
        own = [each.clone() for each in self.states]
        expected = self.block.step(self.hidden, *own)
        found = self.few(self.block, self.hidden, *self.states)
        for one, other in zip(found, expected):
            assert torch.equal(one, other)
        return Kernels.runs > before


@pytest.mark.parametrize("name", vars(LAYERS))
def test_a_kind_is_tried_once(name: str) -> None:
    step = Stepping(name)
    for _ in range(3):
        assert step()
    assert len(Kernels.made) == 1
    assert Kernels.runs == 4
    other = Stepping(name)
    other.few = step.few
    assert other()
    assert len(Kernels.made) == 1


@pytest.mark.parametrize("factor", [1.1, -1.0, float("nan")])
def test_kernels_that_compute_something_else_are_not_used(factor: float) -> None:
    Kernels.factor = factor
    step = Stepping()
    step()
    Kernels.factor = 1.0
    for _ in range(2):
        assert not step()


def test_nothing_is_decided_where_a_step_gives_no_numbers() -> None:
    step = Stepping()
    step.hidden[0, 0, 0] = float("nan")
    step.few(step.block, step.hidden, *[each.clone() for each in step.states])
    step.hidden[0, 0, 0] = 0.0
    step()
    assert len(Kernels.made) == 2
    assert step()
    assert len(Kernels.made) == 2


class Adapter(nn.Module):
    """Somebody else's module."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        """One more."""
        out: Tensor = self.inside(x) + 1
        return out


def adapted(block: Any) -> None:
    block.out_proj = Adapter(block.out_proj)


def hooked(block: Any) -> None:
    block.in_proj.register_forward_hook(lambda module, given, out: out * 2)


def hooked_norm(block: Any) -> None:
    block.norm.register_forward_hook(lambda module, given, out: out * 2)


def with_a_forward_of_its_own(block: Any) -> None:
    linear = block.in_proj
    vars(linear)["forward"] = lambda x: nn.functional.linear(x, linear.weight) - 1


def another_linear(block: Any) -> None:
    class Other(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1

    width, rows = block.in_proj.in_features, block.in_proj.out_features
    block.in_proj = Other(width, rows, bias=False)


def another_parameter(block: Any) -> None:
    rates = block.A_log
    del block.A_log
    block.A_log = rates.detach() + 1


@pytest.mark.parametrize(
    "change",
    [adapted, hooked, hooked_norm, with_a_forward_of_its_own, another_linear, another_parameter],
)
@pytest.mark.parametrize("first", [False, True])
def test_a_layer_that_is_not_plain_takes_its_own_step(
    change: Callable[[Any], None], first: bool
) -> None:
    step = Stepping("mamba2")
    if not first:
        assert step()
    change(step.block)
    for _ in range(2):
        assert not step()


def test_a_step_that_records_gradients_is_the_layer_s() -> None:
    step = Stepping()
    with torch.enable_grad():
        out = step.few(step.block, step.hidden, *step.states)[0]
    assert out.requires_grad
    assert Kernels.runs == 0


def test_autocast_and_the_inference_path_off_are_the_layer_s() -> None:
    step = Stepping()
    with torch.autocast("cpu", torch.bfloat16):
        assert not step()
    with inference_path(False):
        assert not step()
    assert step()


@pytest.mark.parametrize("op", ["causal_conv1d", "selective_state_update"])
def test_a_backend_that_somebody_names_is_used(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Stepping()
    monkeypatch.setattr(backends, "named", ((op, "pytorch"),))
    assert not step()
    monkeypatch.setattr(backends, "named", ((op, "cuda"),))
    assert step()


def test_a_function_in_the_place_of_the_layer_s_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    step = Stepping()
    assert step()
    update = small.causal_conv1d_update
    monkeypatch.setattr(small, "causal_conv1d_update", lambda *given: -update(*given))
    step()
    assert len(Kernels.made) == 2


def test_weights_of_other_numbers_are_tried_anew() -> None:
    step = Stepping()
    step()
    step.block.A_log.data = step.block.A_log.data.double()
    step()
    assert len(Kernels.made) == 2


def test_while_a_graph_is_captured_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Stepping()
    monkeypatch.setattr(layers, "_is_capturing", lambda: True)
    assert not step()
    monkeypatch.setattr(layers, "_is_capturing", lambda: False)
    assert step()
    monkeypatch.setattr(layers, "_is_capturing", lambda: True)
    assert step()


def test_many_sequences_and_states_that_are_no_tensors_are_the_layer_s() -> None:
    assert not Stepping(batch=layers.MOST_SEQUENCES + 1)()
    step = Stepping()
    step.states = tuple(nn.Parameter(each, requires_grad=False) for each in step.states)
    assert not step()


def test_writes_are_counted() -> None:
    step = Stepping()
    step()
    before = [each._version for each in step.states]
    with torch.no_grad():
        step.few(step.block, step.hidden, *step.states)
    assert all(each._version > was for each, was in zip(step.states, before))
