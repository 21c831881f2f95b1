"""What an older torch does otherwise, imitated in this one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import autocast, in_place, paths
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


def with_autocast(knows_all: bool, **on: torch.dtype) -> Any:
    """A torch with autocast on for these kinds of device; before 2.4 it knows two."""

    def is_autocast_enabled(of: str = "cuda") -> bool:
        if of == "meta":
            raise RuntimeError("no autocast of meta")
        return of in on

    later = {"get_autocast_dtype": lambda of: on[of]} if knows_all else {}
    return SimpleNamespace(
        is_autocast_enabled=is_autocast_enabled,
        is_autocast_cpu_enabled=lambda: "cpu" in on,
        get_autocast_cpu_dtype=lambda: on["cpu"],
        get_autocast_gpu_dtype=lambda: on["cuda"],
        **later,
    )


@pytest.mark.parametrize("knows_all", [True, False])
@pytest.mark.parametrize(
    "on",
    [{}, {"cpu": torch.bfloat16}, {"cuda": torch.float16}, {"cpu": torch.half, "cuda": torch.half}],
)
def test_the_dtype_of_autocast_is_that_of_the_device(
    on: dict[str, torch.dtype], knows_all: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autocast, "torch", with_autocast(knows_all, **on))
    monkeypatch.setattr(autocast, "_BY_TYPE", knows_all)
    for kind in ("cpu", "cuda"):
        assert autocast.autocast_dtype(torch.device(kind)) == on.get(kind)


def test_a_device_that_two_functions_do_not_know_has_a_dtype_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(autocast, "torch", with_autocast(True, xpu=torch.bfloat16))
    found = [autocast.autocast_dtype(torch.device(kind)) for kind in ("xpu", "cuda", "meta")]
    assert found == [torch.bfloat16, None, None]


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
