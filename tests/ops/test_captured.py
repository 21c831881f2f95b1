"""Calls that no CUDA graph launches go to the function itself; ``tests/gpu`` has those that do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.captured import Captured


def test_on_a_cpu_every_call_is_the_functions_own() -> None:
    calls = []

    def function(inputs: tuple[Tensor, ...], weights: Any, scale: float) -> tuple[Tensor, ...]:
        calls.append(scale)
        return (inputs[0] * weights[0] * scale,)

    captured = Captured(function)
    for scale in (2.0, 2.0, 2.0, 3.0):
        (out,) = captured((torch.ones(3),), (torch.full((3,), 5.0), None), scale)
        assert out.tolist() == [5 * scale] * 3
    assert calls == [2.0, 2.0, 2.0, 3.0]


def test_what_is_no_tensor_is_left_to_the_function_to_refuse() -> None:
    def function(inputs: Any, weights: Any) -> tuple[Tensor, ...]:
        raise TypeError(f"x: expected a tensor, found {type(inputs[0]).__name__}")

    with pytest.raises(TypeError, match="x: expected a tensor, found NoneType"):
        Captured(function)((None,), ())  # type: ignore[arg-type]
