"""The convolution on a GPU: each backend that this machine has, against the loop over time."""

from __future__ import annotations

from typing import Iterator

import pytest
import torch

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.errors import Unavailable
from jetson_mamba.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update, op
from jetson_mamba.ops.causal_conv1d.contract import Case
from tests.ops.conv1d_setups import SETUPS, Setup, check, name
from tests.references.causal_conv1d import update as reference_update
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.fixture(scope="module", params=op.OP.order)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The op with nothing but one backend, or a skip that says why it is not there."""
    chosen = Op("causal_conv1d", op.OP._package, (request.param,), op.OP._trial)
    device = torch.device("cuda", torch.cuda.current_device())
    try:
        chosen._load(request.param, Case(device, torch.float32, torch.float32, 4))
    except Unavailable as reason:
        pytest.skip(f"{request.param}: {reason}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(op, "OP", chosen)
        yield request.param


@pytest.mark.parametrize("setup", SETUPS, ids=name)
def test_agrees_with_the_loop_over_time(backend: str, setup: Setup) -> None:
    check(setup, torch.device("cuda", torch.cuda.current_device()))


@pytest.mark.parametrize("ring", [False, True])
@pytest.mark.parametrize("indices", [False, True])
@pytest.mark.parametrize("seqlen", [1, 3])
def test_update_agrees_with_the_loop_over_time(
    backend: str, seqlen: int, indices: bool, ring: bool
) -> None:
    x, state = torch.randn(3, 8, seqlen), torch.randn(6 if indices else 3, 8, 5)
    weight, bias = torch.randn(8, 4), torch.randn(8)
    cache_seqlens = torch.tensor([0, 3, 14], dtype=torch.int32) if ring else None
    rows = torch.tensor([4, -1, 2], dtype=torch.int32) if indices else None
    expected, after = reference_update(x, state, weight, bias, True, cache_seqlens, rows)
    on_gpu = state.cuda()
    out = causal_conv1d_update(
        x.cuda(),
        on_gpu,
        weight.cuda(),
        bias.cuda(),
        "silu",
        None if cache_seqlens is None else cache_seqlens.cuda(),
        None if rows is None else rows.cuda(),
    )
    assert relative_norm(out, expected) < 1e-5
    assert torch.equal(on_gpu.cpu().double(), after)


def test_the_device_of_the_tensors_is_the_one_that_computes() -> None:
    device = torch.device("cuda", torch.cuda.device_count() - 1)
    out = causal_conv1d_fn(torch.ones(1, 8, 4, device=device), torch.ones(8, 4, device=device))
    assert out.device == device
    assert out[0, 0].tolist() == [1, 2, 3, 4]
