"""What torch asks of the ops, where the driver launches their kernels.

The ops are the convolution and the scan.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import jetson_mamba
from jetson_mamba.ops import causal_conv1d_fn, causal_conv1d_update, selective_scan_fn
from jetson_mamba.ops.causal_conv1d import OP as CONVOLUTION
from jetson_mamba.ops.causal_conv1d.contract import Case
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore"),
]


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, device="cuda", requires_grad=True)


def both(x: Tensor, weight: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The convolution and the scan."""
    u = causal_conv1d_fn(x, weight, activation="silu")
    out = selective_scan_fn(u, x, A, B, B, z=x, delta_softplus=True)
    assert isinstance(out, Tensor)
    return out


def leaves(seqlen: int = 300) -> list[Tensor]:
    torch.manual_seed(0)
    A = (-torch.rand(8, 4, device="cuda")).requires_grad_()
    return [drawn(2, 8, seqlen), drawn(8, 4), A, drawn(2, 1, 4, seqlen)]


def near(found: Any, expected: Any) -> None:
    for each, right in zip(found, expected):
        assert relative_norm(each, right) < 1e-4


def test_what_kernels_write_is_counted() -> None:
    case = Case(torch.device("cuda:0"), torch.float32, torch.float32, 4)
    CONVOLUTION.implementation(case)
    x, state = torch.randn(2, 8, device="cuda"), torch.zeros(2, 8, 4, device="cuda")
    saved = drawn(1) * state
    before = state._version
    causal_conv1d_update(x, state, torch.randn(8, 4, device="cuda"))
    assert state._version > before and torch.equal(state[..., -1], x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        saved.sum().backward()


def test_derivatives_of_kernels_agree_with_those_of_the_composition() -> None:
    given = leaves()
    first = torch.autograd.grad(both(*given).square().mean(), given)
    recorded = torch.autograd.grad(both(*given).square().mean(), given, create_graph=True)
    near(recorded, first)
    penalty = torch.stack([gradient.square().sum() for gradient in recorded]).sum()
    second = torch.autograd.grad(penalty, given)

    def of(*tensors: Tensor) -> Tensor:
        return both(*tensors).square().mean()

    def penalised(*tensors: Tensor) -> Tensor:
        gradients = torch.func.grad(of, (0, 1, 2, 3))(*tensors)
        return torch.stack([gradient.square().sum() for gradient in gradients]).sum()

    plain = [each.detach() for each in given]
    near(second, torch.func.grad(penalised, (0, 1, 2, 3))(*plain))
    near(
        torch.vmap(both, (0, None, None, None))(torch.stack([plain[0]]), *plain[1:]), [both(*plain)]
    )


@pytest.mark.skipif(not hasattr(torch.library, "register_autograd"), reason="needs operators")
def test_graphs_of_make_fx_and_of_the_compiler_hold_what_kernels_do() -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    given = leaves()
    plain = [each.detach() for each in given]
    expected = both(*plain)
    near([make_fx(both)(*plain)(*plain)], [expected])
    near([torch.jit.trace(both, tuple(plain), check_trace=False)(*plain)], [expected])
    gradients = torch.autograd.grad(both(*given).sum(), given)
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    with jetson_mamba.backend(selective_scan="cuda"):
        out = compiled(*given)
    # Traced with the rows of one backend, and then run where another is named.
    with jetson_mamba.backend(selective_scan="pytorch"):
        near(torch.autograd.grad(out.sum(), given), gradients)
        near(torch.autograd.grad(compiled(*given).sum(), given), gradients)
