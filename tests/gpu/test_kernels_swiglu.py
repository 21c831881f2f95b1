"""The gate's CUDA kernels against the definition in float64, on a GPU."""

from __future__ import annotations

from typing import Any, Callable, Iterator

import pytest
import torch

from jetson_mamba.ops import swiglu_backward, swiglu_forward
from jetson_mamba.ops.swiglu import op
from jetson_mamba.ops.swiglu.contract import Case
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# Of a rounding to the dtype, and what comes besides.
TOLERANCE = {torch.float32: 2e-6, torch.float16: 5e-4, torch.bfloat16: 2.8e-3}
backward: Callable[..., Any] = swiglu_backward


@pytest.fixture(autouse=True)
def _nan_in_empty_memory() -> Iterator[None]:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("offset", [0, 1, 8])
@pytest.mark.parametrize("shape", [(1, 2), (3, 14), (2, 5, 200), (130, 3072), (4, 8200)], ids=str)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_both_passes_agree_with_float64(
    dtype: torch.dtype, shape: tuple[int, ...], offset: int
) -> None:
    *batch, columns = shape
    dim = columns // 2
    xy = torch.randn(*batch, columns + offset, device="cuda").to(dtype)[..., offset:]
    dout = torch.randn(*batch, dim + offset, device="cuda").to(dtype)[..., offset:]
    exact = xy.double().requires_grad_()
    first, second = exact.split(dim, -1)
    expected = torch.nn.functional.silu(first) * second
    (gradient,) = torch.autograd.grad(expected, exact, dout.double())
    found = op.OP.implementation(Case(xy.device, dtype))
    assert found.forward.__module__ == "jetson_mamba.ops.swiglu.cuda"
    whole = torch.zeros(*batch, dim + 8, device="cuda", dtype=dtype)
    out = swiglu_forward(xy, whole[..., 8:])
    assert out.data_ptr() == whole[..., 8:].data_ptr() and not whole[..., :8].any()
    dxy, again = backward(xy, dout, recompute_output=True)
    assert torch.equal(again, out) and torch.equal(dxy, backward(xy, dout))
    assert relative_norm(out, expected) < TOLERANCE[dtype]
    assert relative_norm(dxy, gradient) < TOLERANCE[dtype]


def test_a_target_of_another_dtype_is_written_and_gradients_have_gradients() -> None:
    xy = torch.randn(3, 8, device="cuda")
    target = torch.empty(3, 4, device="cuda", dtype=torch.float64)
    assert swiglu_forward(xy, target) is target
    assert relative_norm(target, swiglu_forward(xy)) < 1e-7
    exact = torch.randn(2, 6, device="cuda", dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(swiglu_forward, (exact,))
    tracked = torch.randn(2, 6, device="cuda", requires_grad=True)
    assert swiglu_forward(tracked).requires_grad
