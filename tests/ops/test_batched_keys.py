"""A batch of ``is_grads_batched`` is known in every torch, whatever it calls what is asked."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import paths


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
