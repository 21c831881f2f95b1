"""The ssd op is right for steps that no trained model has.

For such decays too, and for factors that a GPU rounds.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.ssd import block, chunks
from tests.ops.test_ssd import (
    TOLERANCE,
    assert_agrees,
    leaves,
    random,
    results_and_gradients,
    scan,
    scan_tensors,
)
from tests.references.ssd import ssd_scan
from tests.references.tolerance import relative_norm


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_may_grow(dtype: torch.dtype, softplus: bool) -> None:
    tensors = scan_tensors(150)
    tensors["A"] = torch.tensor([0.3, 0.05, -1.0, 1e-3], dtype=torch.float64)
    assert_agrees(scan, ssd_scan, tensors, dtype, TOLERANCE[dtype], dt_softplus=softplus)


@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_may_go_back(dtype: torch.dtype, softplus: bool) -> None:
    """Where the limits let them: with softplus they are negative by a negative limit alone."""
    tensors = scan_tensors(70)
    limits = (-0.5, -0.1) if softplus else (-0.2, 0.6)
    options = {"dt_softplus": softplus, "dt_limit": limits}
    assert_agrees(scan, ssd_scan, tensors, dtype, TOLERANCE[dtype], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_of_nothing_has_a_gradient(dtype: torch.dtype) -> None:
    tensors = scan_tensors(100)
    del tensors["dt_bias"]
    tensors["dt"][:, ::3] = 0.0
    tensors["dt"][:, 64:80] = 0.0
    assert_agrees(scan, ssd_scan, tensors, dtype, TOLERANCE[dtype])


def test_steps_of_every_size_in_one_chunk() -> None:
    tensors = scan_tensors(70)
    del tensors["dt_bias"]
    tensors["dt"] = 10.0 ** (random(*tensors["dt"].shape) * 3 - 4)
    assert_agrees(scan, ssd_scan, tensors, torch.float32, TOLERANCE[torch.float32])


def test_pairs_in_bfloat16_round_the_gradient_of_x_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, whose products of bfloat16 have sums in float32."""
    product = block.product

    def wide(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
        return product(a.to(dtype), b.to(dtype), dtype, out)

    dtypes = dict.fromkeys(("x", "dt", "B", "C"), torch.bfloat16)
    tensors = leaves(scan_tensors(150), dtypes)
    del tensors["z"]
    weights = [random(*tensors[name].shape).bfloat16().double() for name in ("x", "initial_states")]
    options = {"chunk_size": 64, "dt_softplus": True, "return_final_states": True}
    expected = results_and_gradients(scan, tensors, weights, **options)
    monkeypatch.setattr(chunks, "operand_dtype", lambda scan: torch.bfloat16)
    monkeypatch.setattr(chunks, "product", wide)
    found = results_and_gradients(scan, tensors, weights, **options)
    assert 1e-4 < relative_norm(found["x"], expected["x"]) < 4e-3
    for name in expected:
        if name != "x":
            assert relative_norm(found[name], expected[name]) < 1e-6, name
