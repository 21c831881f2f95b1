"""A layer's step by few operations on a CPU, against the step as it is defined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import backends, workers
from jetson_mamba.ops.decoding import layers, layers_cpu
from tests.kernels.layers import LAYERS
from tests.references.tolerance import relative_norm

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers that ran, one for each time."""
    ran: list[Any] = []
    run = layers._run

    def noting(layer: Any, *given: Any) -> Tensor:
        ran.append(layer)
        return run(layer, *given)

    monkeypatch.setattr(layers, "_run", noting)
    return ran


def hold(block: Any, batch: int, state_dtype: torch.dtype, tokens: int = 3) -> None:
    """Hold steps to as many as they are defined."""
    step = layers.in_few_kernels(type(block).step)
    found, right = block.states(batch, state_dtype), block.states(batch, state_dtype)
    for one, other in zip(found, right):
        one.copy_(other)
    with torch.no_grad():
        for _ in range(tokens):
            hidden = torch.randn(batch, 1, block.in_proj.weight.shape[1])
            out = step(block, hidden, *found)
            expected = block.step(hidden, *right)
            assert out[1] is found[0]
            assert out[2] is found[1]
            for one, other in zip(out, expected):
                assert one.dtype == other.dtype
                assert one.shape == other.shape
                assert relative_norm(one, other) < TOLERANCE[state_dtype]


@pytest.mark.parametrize("name", vars(LAYERS))
@pytest.mark.parametrize("batch", [1, 3])
def test_a_step_by_few_operations_is_the_step(name: str, batch: int, served: list[Any]) -> None:
    torch.manual_seed(0)
    hold(vars(LAYERS)[name](), batch, torch.float32)
    # Once more for the trial.
    assert len(served) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mamba", "mamba2"])
def test_states_of_two_bytes(name: str, dtype: torch.dtype, served: list[Any]) -> None:
    torch.manual_seed(0)
    hold(vars(LAYERS)[name](), 2, dtype)
    assert len(served) == 4


@pytest.mark.parametrize("name", ["mamba", "mamba2", "mamba2_in_groups"])
@pytest.mark.parametrize(("grain", "most_alone"), [(700, 1 << 20), (700, 0), (1, 1 << 20)])
def test_parts_of_the_states_are_the_whole(
    name: str, grain: int, most_alone: int, served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "GRAIN", grain)
    monkeypatch.setattr(layers_cpu, "MOST_ALONE", most_alone)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        hold(vars(LAYERS)[name](), 2, torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert len(served) == 4


def test_other_weights_than_float32_are_left_to_the_layer(served: list[Any]) -> None:
    block: Any = LAYERS.mamba().double()
    step = layers.in_few_kernels(type(block).step)
    hidden, states = torch.randn(1, 1, 64).double(), block.states(1, torch.float32)
    with torch.no_grad():
        step(block, hidden, *states)
    assert served == []


def test_a_backend_that_somebody_names_is_used(
    served: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(backends, "named", (("causal_conv1d", "package"),))
    hold(LAYERS.mamba(), 1, torch.float32)
    assert served == []
    monkeypatch.setattr(backends, "named", (("causal_conv1d", "pytorch"),))
    hold(LAYERS.mamba(), 1, torch.float32)
    assert len(served) == 4


def test_decays_are_those_of_the_exponential() -> None:
    A_log = torch.linspace(-4, 4, 99)
    steps = torch.tensor([0.0, 1e-4, 0.1, 3.0, 40.0]).unsqueeze(-1)
    right = torch.exp(-steps.double() * torch.exp(A_log.double()))
    found = layers_cpu.decay_of(A_log, steps)
    assert float((found - right).abs().max()) < 1e-6
