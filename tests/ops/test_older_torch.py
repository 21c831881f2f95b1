"""What an older torch does otherwise, imitated in this one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import in_place, paths
from jetson_mamba.ops import mamba_chunk_scan_combined


class Seen(torch.autograd.Function):
    """Keeps what its backward pass is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[bool]) -> Tensor:
        """Doubles ``x``."""
        ctx.seen = seen
        return 2 * x

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor, None]:
        """Looks at the gradient, which may hide a batch."""
        ctx.seen.append(paths._has_batched_key(dout))
        return 2 * dout, None


@pytest.mark.parametrize("name", ["_parse_dispatch_key", "_dispatch_key_parse"])
def test_a_batch_is_known_by_its_key(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch 2.2 has the first name, 2.0 and 2.1 the second: a block failed there."""
    parse = getattr(torch._C, "_parse_dispatch_key")  # noqa: B009
    keys = SimpleNamespace(_dispatch_keys=torch._C._dispatch_keys, **{name: parse})
    monkeypatch.setattr(paths, "torch", SimpleNamespace(_C=keys))
    seen: list[bool] = []
    x = torch.ones(3, requires_grad=True)
    apply: Any = Seen.apply
    out = apply(x, seen)
    torch.autograd.grad(out, x, torch.ones(3), retain_graph=True)
    torch.autograd.grad(out, x, torch.eye(3), is_grads_batched=True)
    assert seen == [False, True]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("with_d", "gated"), [(True, True), (True, False), (False, True)])
def test_mamba_2_in_16_bits_needs_no_conversion_of_addcmul(
    dtype: torch.dtype, with_d: bool, gated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch 2.0 and 2.1 stop on a CPU with an assertion of their own, "report a bug"."""
    real: Any = torch.addcmul

    def addcmul(input: Tensor, *others: Tensor, out: Tensor | None = None) -> Tensor:
        assert out is None or out.dtype == input.dtype
        return torch.Tensor(real(input, *others, out=out))

    source = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=source).to(dtype)

    x, dt, B, C = drawn(2, 35, 4, 8), drawn(2, 35, 4), drawn(2, 35, 1, 16), drawn(2, 35, 1, 16)
    A = -torch.rand(4, generator=source)
    D, z = (drawn(4, 8) if with_d else None), (drawn(2, 35, 4, 8) if gated else None)
    given = [each.requires_grad_() for each in (x, dt, A, B, C, D, z) if each is not None]

    def computed() -> list[Tensor]:
        out: Any = mamba_chunk_scan_combined(x, dt, A, B, C, 16, D=D, z=z, dt_softplus=True)
        return [out, *torch.autograd.grad(out.float().sum(), given)]

    as_it_is = computed()
    monkeypatch.setattr(in_place, "_CONVERTS", False)
    monkeypatch.setattr(torch, "addcmul", addcmul)
    for one, other in zip(as_it_is, computed()):
        assert torch.equal(one, other)
