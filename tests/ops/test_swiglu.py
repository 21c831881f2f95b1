"""The gate of a gated MLP agrees with float64. So does a norm with its projection."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.autocast import autocast_dtype
from jetson_mamba.ops import layer_norm_linear_fn, swiglu_backward, swiglu_forward
from tests.references.tolerance import TOLERANCES, relative_norm

# Untyped, so that what they return can be unpacked.
backward: Callable[..., Any] = swiglu_backward
linear: Callable[..., Any] = layer_norm_linear_fn


def reference(xy: Tensor) -> Tensor:
    a, b = xy.double().split(xy.shape[-1] // 2, -1)
    out: Tensor = a / (1 + torch.exp(-a)) * b
    return out


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(6,), (3, 8), (2, 3, 10)])
@pytest.mark.parametrize("dtype", TOLERANCES)
def test_output_and_gradient_agree_with_float64(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    # Neither contiguous nor at the start of its memory, as the columns of a wider product.
    xy = torch.randn(*shape[:-1], shape[-1] + 2).to(dtype)[..., 1:-1]
    dout = torch.randn(*shape[:-1], shape[-1] // 2).to(dtype)
    exact = xy.double().requires_grad_()
    expected = reference(exact)
    (gradient,) = torch.autograd.grad(expected, exact, dout.double())
    out = swiglu_forward(xy)
    dxy, again = backward(xy, dout, recompute_output=True)
    assert torch.equal(dxy, backward(xy, dout))
    for found, right in ((out, expected), (again, expected), (dxy, gradient)):
        assert found.dtype == dtype
        assert relative_norm(found, right) < TOLERANCES[dtype]


def test_results_are_written_where_they_are_wanted() -> None:
    xy, dout = torch.randn(2, 3, 8), torch.randn(2, 3, 4)
    whole, gradients = torch.zeros(2, 3, 10), torch.zeros(2, 3, 8, dtype=torch.float64)
    out = swiglu_forward(xy, out=whole[..., 2:6])
    assert out.data_ptr() == whole[..., 2:6].data_ptr()
    assert torch.equal(whole[..., 2:6], swiglu_forward(xy))
    assert not whole[..., :2].any() and not whole[..., 6:].any()
    again = torch.empty(2, 3, 4)
    found = backward(xy, dout, dxy=gradients, recompute_output=True, out=again)
    assert found[0] is gradients and found[1] is again
    assert relative_norm(gradients, swiglu_backward(xy, dout)) < 1e-7  # type: ignore[arg-type]
    assert relative_norm(again, swiglu_forward(xy)) < 1e-6


def test_the_gradient_has_a_gradient() -> None:
    xy = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    dout = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(backward, (xy, dout))
    assert torch.autograd.gradgradcheck(swiglu_forward, (xy,))
    mapped = torch.vmap(backward)(xy.detach(), dout.detach())
    assert relative_norm(mapped, backward(xy, dout)) < 1e-14


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: swiglu_forward(torch.ones(3, 5)), r"xy: expected two halves .*\(3, 5\)"),
        (
            lambda: swiglu_forward(torch.ones(3, 6), torch.ones(3, 4)),
            r"out: expected half of xy, \(3, 3\), found \(3, 4\)",
        ),
        (lambda: swiglu_backward(torch.ones(3, 6), torch.ones(2, 3)), r"dout: .*found \(2, 3\)"),
        (
            lambda: swiglu_backward(torch.ones(3, 6), torch.ones(3, 3), torch.ones(3, 3)),
            r"dxy: expected the shape of xy, \(3, 6\), found \(3, 3\)",
        ),
    ],
)
def test_a_shape_that_does_not_fit_is_named(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def norm(x: Tensor, is_rms_norm: bool) -> Tensor:
    if not is_rms_norm:
        x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + 0.1).sqrt()


@pytest.mark.parametrize("is_rms_norm", [True, False])
@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("residual", [None, torch.float32, torch.float64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_norm_and_its_projection_agree_with_float64(
    dtype: torch.dtype, residual: torch.dtype | None, biases: bool, is_rms_norm: bool
) -> None:
    def drawn(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape).to(dtype).requires_grad_()

    given = {
        "x": drawn(2, 5, 12),
        "norm_weight": drawn(12, dtype=torch.float32),
        "norm_bias": drawn(12, dtype=torch.float32) if biases else None,
        "linear_weight": drawn(7, 12, dtype=torch.float32),
        "linear_bias": drawn(7, dtype=torch.float32) if biases else None,
        "residual": None if residual is None else drawn(2, 5, 12, dtype=residual),
    }
    options = {"eps": 0.1, "is_rms_norm": is_rms_norm, "prenorm": True}
    out, total = linear(**given, **options)
    assert out.dtype == dtype
    assert total.dtype == (dtype if residual is None else residual)
    exact = {
        k: None if t is None else t.detach().double().requires_grad_() for k, t in given.items()
    }
    x, weight = exact["x"], exact["linear_weight"]
    assert x is not None and weight is not None and exact["norm_weight"] is not None
    right_total = x if exact["residual"] is None else x + exact["residual"]
    normed = norm(right_total, is_rms_norm) * exact["norm_weight"]
    if exact["norm_bias"] is not None:
        normed = normed + exact["norm_bias"]
    right = functional.linear(normed, weight, exact["linear_bias"])
    found = [t for t in given.values() if t is not None]
    wanted = [t for t in exact.values() if t is not None]
    weights = torch.randn(right.shape).to(dtype), torch.randn(total.shape).to(total.dtype)
    gradients = torch.autograd.grad((out, total), found, weights)
    right_gradients = torch.autograd.grad(
        (right, right_total), wanted, tuple(each.double() for each in weights)
    )
    tolerance = TOLERANCES[dtype]
    assert relative_norm(out, right) < tolerance
    assert relative_norm(total, right_total) < tolerance
    for tensor, gradient, right_gradient in zip(found, gradients, right_gradients):
        assert gradient.dtype == tensor.dtype
        assert relative_norm(gradient, right_gradient) < tolerance


def test_without_prenorm_there_is_the_output_alone() -> None:
    x, weight = torch.randn(3, 4), torch.randn(5, 4)
    out, _ = linear(x, torch.ones(4), None, weight, None, prenorm=True)
    assert torch.equal(linear(x, torch.ones(4), None, weight, None), out)


def test_under_autocast_the_product_is_in_its_dtype() -> None:
    x, weight, bias = torch.randn(3, 64), torch.randn(5, 64), torch.randn(5)
    plain = linear(x, torch.ones(64), None, weight, bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert autocast_dtype(x.device) == torch.bfloat16
        out, total = linear(x, torch.ones(64), None, weight, bias, prenorm=True)
    assert (out.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    assert relative_norm(out, plain) < TOLERANCES[torch.bfloat16]


def test_a_norm_and_its_projection_have_second_derivatives_and_map() -> None:
    given = [
        torch.randn(shape, dtype=torch.float64) for shape in ((2, 6), (6,), (6,), (3, 6), (3,))
    ]
    assert torch.autograd.gradgradcheck(linear, [each.requires_grad_() for each in given])
    x = torch.randn(4, 2, 6, dtype=torch.float64)
    plain = [each.detach() for each in given[1:]]
    mapped = torch.vmap(linear, (0, None, None, None, None))(x, *plain)
    assert relative_norm(mapped, linear(x, *plain)) < 1e-14
