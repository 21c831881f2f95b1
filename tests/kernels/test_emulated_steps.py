"""A layer's step by few kernels, which run on a CPU here, against the step as it is defined."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.decoding import layers, layers_cuda
from jetson_mamba.ops.norms import cuda as norms_cuda
from tests.kernels.emulated import emulate
from tests.kernels.layers import LAYERS
from tests.references.tolerance import relative_norm

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def on_the_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, libraries)
    for module in (layers_cuda, norms_cuda):
        monkeypatch.setattr(module, "processors", lambda index: 4)
        monkeypatch.setattr(module, "index_of", lambda device: -1)
    monkeypatch.setattr(layers, "_is_on_a_gpu", lambda tensor: True)
    monkeypatch.setattr(layers, "_is_capturing", lambda: False)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The layers whose kernels ran, one for each time."""
    ran: list[Any] = []
    run = layers._run

    def noting(layer: Any, *given: Any) -> Tensor:
        ran.append(layer)
        return run(layer, *given)

    monkeypatch.setattr(layers, "_run", noting)
    return ran


def hold(
    block: Any, batch: int, state_dtype: torch.dtype, served: list[Any], tokens: int = 3
) -> None:
    """Hold steps by kernels to as many as they are defined."""
    step = layers.in_few_kernels(type(block).step)
    weight = block.in_proj.weight
    found, right = block.states(batch, state_dtype), block.states(batch, state_dtype)
    for one, other in zip(found, right):
        one.copy_(other)
    with torch.no_grad():
        for _ in range(tokens):
            hidden = torch.randn(batch, 1, weight.shape[1], dtype=weight.dtype)
            out = step(block, hidden, *found)
            expected = block.step(hidden, *right)
            assert out[1] is found[0]
            assert out[2] is found[1]
            for one, other in zip(out, expected):
                assert one.dtype == other.dtype
                assert one.shape == other.shape
                assert relative_norm(one, other) < TOLERANCE[weight.dtype]
    # Once more for the trial.
    assert len(served) == tokens + 1


@pytest.mark.parametrize(
    ("name", "batch"), [*zip(vars(LAYERS), (1, 3, 3, 1, 1, 1)), ("mamba", 6), ("mamba2", 6)]
)
def test_a_step_by_few_kernels_is_the_step(name: str, batch: int, served: list[Any]) -> None:
    torch.manual_seed(0)
    hold(vars(LAYERS)[name](), batch, torch.float32, served)


@pytest.mark.parametrize(
    ("name", "state_dtype"), [("mamba", torch.float32), ("mamba2", torch.bfloat16)]
)
def test_numbers_of_two_bytes(name: str, state_dtype: torch.dtype, served: list[Any]) -> None:
    torch.manual_seed(0)
    hold(vars(LAYERS)[name]().to(torch.bfloat16), 2, state_dtype, served)
