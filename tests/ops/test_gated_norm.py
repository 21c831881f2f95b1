"""A mixer's norm by the kernels of the norms, in whose place PyTorch's functions stand here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.norms import pytorch as norms
from jetson_mamba.ops.ssd import gated_norm
from jetson_mamba.ops.ssd.gates import GatedRMSNorm

BATCH, SEQLEN, DIM = 2, 5, 12


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What kernels are asked for, on a GPU that is none."""
    found: list[tuple[Any, ...]] = []

    def kernels(x: Tensor, weight: Tensor, group: int, *more: Tensor, needs_backward: bool) -> Any:
        found.append((group, len(more), needs_backward))
        return norms.IMPLEMENTATION

    monkeypatch.setattr(Tensor, "is_cuda", True)
    monkeypatch.setattr(gated_norm, "kernels_on_gpu", kernels)
    return found


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    x, z, dout = (torch.randn(BATCH, SEQLEN, DIM) for _ in range(3))
    return x, z, dout


# Where the gradient of the gate goes: memory whose rows are whole, and one where they are not.
TARGETS = {
    "its own": lambda: torch.zeros(BATCH, SEQLEN, DIM),
    "columns of more": lambda: torch.zeros(BATCH, SEQLEN, 3 * DIM)[..., DIM : 2 * DIM],
    "a transposed one": lambda: torch.zeros(BATCH, DIM, SEQLEN).transpose(1, 2),
    "steps of a longer one": lambda: torch.zeros(BATCH, 2 * SEQLEN, DIM)[:, ::2],
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("group", [4, 12])
def test_by_kernels_it_is_what_it_is_without(
    group: int, before: bool, target: str, asked: list[tuple[Any, ...]]
) -> None:
    x, z, dout = drawn()
    norm = GatedRMSNorm(torch.rand(DIM) + 0.5, 1e-5, group, before)
    out, rstd = gated_norm.forward(norm, x, z, with_rstd=True)
    assert rstd is not None
    torch.testing.assert_close(out, norm.forward(x, z))
    torch.testing.assert_close(rstd, norm.rstd(x, z))
    assert gated_norm.forward(norm, x, z)[1] is None
    dz = TARGETS[target]()
    dx, dweight, again = gated_norm.backward(norm, x, z, dout, dz)
    expected = norm.backward(x, z, dout)
    for found, right in zip((dx, dz, dweight), expected):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)
    assert again is None
    assert asked == [(group, 0, False), (group, 0, False), (group, 1, True)]


@pytest.mark.parametrize("other", ["z", "dz", "device", "none"])
def test_without_kernels_it_is_computed_here(
    other: str, asked: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, z, dout = drawn()
    norm = GatedRMSNorm(torch.rand(DIM) + 0.5, 1e-5, 4, False)
    if other == "device":
        monkeypatch.setattr(Tensor, "is_cuda", False)
    elif other == "none":
        monkeypatch.setattr(gated_norm, "kernels_on_gpu", lambda *_, **__: None)
    z = z.double() if other == "z" else z
    dz = torch.zeros_like(z, dtype=torch.float64 if other in ("z", "dz") else torch.float32)
    if other != "dz":
        out, rstd = gated_norm.forward(norm, x, z, with_rstd=True)
        assert rstd is not None and out.dtype == x.dtype
        torch.testing.assert_close(out, norm.forward(x, z).float())
        torch.testing.assert_close(rstd, norm.rstd(x, z))
        assert gated_norm.forward(norm, x, z)[1] is None
    dx, dweight, again = gated_norm.backward(norm, x, z, dout, dz)
    assert again is not None
    found = (dx, dz, dweight, again)
    for one, right in zip(found, norm.backward(x, z, dout)):
        torch.testing.assert_close(one, right, check_dtype=False, rtol=1e-4, atol=1e-5)
    assert asked == []
