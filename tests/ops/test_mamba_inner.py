"""A Mamba block after its input projection, past upstream's autograd function, against float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.paths import inference_path, through_autograd
from jetson_mamba.ops import mamba_inner_fn
from tests.references.selective_scan import selective_scan_reference
from tests.references.ssd import convolution
from tests.references.tolerance import relative_norm

BATCH, DIM, SEQLEN, RANK, DSTATE, D_MODEL = 2, 6, 13, 2, 3, 5


def arguments(is_complex: bool = False, **options: Tensor) -> dict[str, Any]:
    """What a block gives the function, and what is given in its place or besides."""
    torch.manual_seed(0)
    A = -torch.rand(DIM, DSTATE)
    if is_complex:
        A = torch.complex(A, torch.randn(DIM, DSTATE))
    parts = 2 if is_complex else 1
    return {
        "xz": torch.randn(BATCH, 2 * DIM, SEQLEN),
        "conv1d_weight": torch.randn(DIM, 1, 4),
        "conv1d_bias": torch.randn(DIM),
        "x_proj_weight": torch.randn(RANK + 2 * parts * DSTATE, DIM) / 3,
        "delta_proj_weight": torch.randn(DIM, RANK),
        "out_proj_weight": torch.randn(D_MODEL, DIM),
        "out_proj_bias": None,
        "A": A,
        "D": torch.randn(DIM),
        "delta_bias": torch.randn(DIM),
        **options,
    }


def reference(given: dict[str, Any]) -> Tensor:
    """In the dtype of what is given, from the recurrence: Gu and Dao 2023, figure 3."""
    x, z = given["xz"].chunk(2, 1)
    x = convolution(x.mT, given["conv1d_weight"].squeeze(1), given["conv1d_bias"], None, "silu").mT
    A = given["A"]
    size = DSTATE * (2 if A.is_complex() else 1)
    step, B, C = (given["x_proj_weight"] @ x).split([RANK, size, size], 1)

    def variable(rows: Tensor, name: str) -> Tensor:
        if f"{name}_proj_bias" in given:
            rows = rows + given[f"{name}_proj_bias"][:, None]
        if A.is_complex():
            # A state's two parts lie side by side in a row of the projection, and in a step.
            pairs = torch.stack((rows[:, 0::2], rows[:, 1::2]), -1)
            rows = pairs.reshape(BATCH, DSTATE, 2 * SEQLEN)
        return normalised(rows, given.get(f"{name.lower()}_rms_weight"))

    def normalised(rows: Tensor, weight: Tensor | None) -> Tensor:
        if weight is None:
            return rows
        return rows / (rows.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight[:, None]

    delta = normalised(given["delta_proj_weight"] @ step, given.get("dt_rms_weight"))
    _, out, _, _ = selective_scan_reference(
        x,
        delta,
        A,
        given.get("B", variable(B, "B")),
        given.get("C", variable(C, "C")),
        given["D"],
        z,
        given["delta_bias"],
        delta_softplus=True,
    )
    out = (_double(given["out_proj_weight"]) @ out).mT
    bias: Tensor | None = given["out_proj_bias"]
    return out if bias is None else out + bias


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


OPTIONS: dict[str, dict[str, Any]] = {
    "as a block calls it": {},
    "complex A": {"is_complex": True},
    "bias of the projection back": {"out_proj_bias": torch.randn(D_MODEL)},
    "biases of B and C": {"B_proj_bias": torch.randn(DSTATE), "C_proj_bias": torch.randn(DSTATE)},
    "constant B": {"B": torch.randn(DIM, DSTATE)},
    "constant C": {"C": torch.randn(DIM, DSTATE)},
    "variable B and C that are given": {
        "B": torch.randn(BATCH, 1, DSTATE, SEQLEN),
        "C": torch.randn(BATCH, 1, DSTATE, SEQLEN),
    },
    "normalised": {
        "b_rms_weight": torch.rand(DSTATE),
        "c_rms_weight": torch.rand(DSTATE),
        "dt_rms_weight": torch.rand(DIM),
    },
    "without bias of the convolution": {"conv1d_bias": None},
}


@pytest.mark.parametrize("option", OPTIONS)
def test_agrees_with_the_recurrence_in_float64(option: str) -> None:
    given = arguments(**OPTIONS[option])
    leaves: dict[str, Any] = {
        name: each.clone().requires_grad_() if isinstance(each, Tensor) else each
        for name, each in given.items()
    }
    wide: dict[str, Any] = {
        name: _double(each).requires_grad_() if isinstance(each, Tensor) else each
        for name, each in given.items()
    }
    weights = torch.randn(BATCH, SEQLEN, D_MODEL)
    out, expected = mamba_inner_fn(**leaves), reference(wide)
    assert relative_norm(out, expected) < 1e-5
    with torch.no_grad():
        assert relative_norm(mamba_inner_fn(**given), expected) < 1e-5
    (out * weights).sum().backward()
    (expected * weights).sum().backward()
    for name, leaf in leaves.items():
        if isinstance(leaf, Tensor):
            assert leaf.grad is not None
            assert relative_norm(leaf.grad, wide[name].grad) < 1e-5, name


def test_under_autocast_the_result_has_its_dtype() -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = mamba_inner_fn(**arguments())
    assert out.dtype == torch.bfloat16
    assert relative_norm(out, reference(arguments())) < 3e-2


def test_a_checkpoint_level_that_upstream_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="checkpoint_lvl: expected 0 or 1, found 2"):
        mamba_inner_fn(**arguments(), checkpoint_lvl=2)


def test_calls_without_gradients_go_past_the_autograd_function_unless_told_not_to() -> None:
    assert through_autograd()
    for context in (torch.no_grad(), torch.inference_mode()):
        with context:
            assert not through_autograd()
            with inference_path(False):
                assert through_autograd()
                with inference_path(True):
                    assert not through_autograd()
                assert through_autograd()
            assert not through_autograd()
