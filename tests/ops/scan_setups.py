"""What every backend of the selective scan is tried with.

The check that each has to pass lies here too. The tests for the CPU and for a GPU share it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.backends import Op
from jetson_mamba.ops.selective_scan import op as selective_scan
from jetson_mamba.ops.selective_scan import (
    selective_scan_bwd,
    selective_scan_fn,
    selective_scan_fwd,
)
from tests.references.once import once
from tests.references.selective_scan import selective_scan_reference
from tests.references.tolerance import relative_norm

CHUNK = 2048
TENSORS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
GRADIENTS = ("du", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias", "dz")
TOLERANCE = {
    torch.float64: 1e-11,
    torch.float32: 1e-5,
    torch.float16: 2e-3,
    torch.bfloat16: 1.2e-2,
}


class Variant(NamedTuple):
    """One combination of arguments."""

    is_complex: bool = False
    variable_b: bool = True
    variable_c: bool = True
    groups: int = 2
    d: bool = True
    z: bool = True
    delta_bias: bool = True
    softplus: bool = True
    seqlen: int = 35
    dtype: torch.dtype = torch.float32
    batch: int = 2
    dim: int = 6
    dstate: int = 5
    stiff: bool = False
    steep: bool = False


def kinds(**others: Any) -> list[Variant]:
    """Real and complex A, with B and C each constant and variable."""
    return [
        Variant(is_complex, variable_b, variable_c, **others)
        for is_complex in (False, True)
        for variable_b in (True, False)
        for variable_c in (True, False)
    ]


VARIANTS = [
    *kinds(),
    *kinds(d=False, z=False, delta_bias=False, softplus=False, seqlen=7),
    *kinds(groups=1, z=False, seqlen=1),
    Variant(groups=3, delta_bias=False),
    Variant(groups=6, d=False),
    Variant(softplus=False),
    *(
        Variant(seqlen=length, batch=1, dim=4, dstate=3, is_complex=is_complex)
        for length in (2047, 2048, 2049)
        for is_complex in (False, True)
    ),
    Variant(False, False, False, seqlen=2049, batch=1, dim=4, dstate=3),
    Variant(seqlen=4100, batch=1, dim=2, dstate=2),
    Variant(seqlen=600, stiff=True, softplus=False),
    Variant(seqlen=600, stiff=True, is_complex=True),
    *kinds(dtype=torch.float64),
    Variant(dtype=torch.float64, steep=True, delta_bias=False, seqlen=13),
    Variant(dtype=torch.float64, steep=True, seqlen=13),
    *kinds(dtype=torch.bfloat16),
    *kinds(dtype=torch.float16),
    Variant(batch=1, dim=600, seqlen=130, dstate=16),
    Variant(dim=2, dstate=256, groups=1, seqlen=9),
]


def named(variant: Variant) -> str:
    """What sets the variant apart, as a test's name."""
    told = [
        f"{name}={str(value).replace('torch.', '')}"
        for name, value in variant._asdict().items()
        if value != Variant._field_defaults[name]
    ]
    return ",".join(told) or "default"


class Arguments(NamedTuple):
    """What is scanned, and the gradient that comes back."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool
    dout: Tensor


def drawn(variant: Variant, device: str = "cpu") -> Arguments:
    torch.manual_seed(0)
    dtype = variant.dtype
    real = torch.promote_types(dtype, torch.float32)
    rows = (variant.batch, variant.dim, variant.seqlen)
    dim, dstate = variant.dim, variant.dstate
    A = -torch.rand(dim, dstate, dtype=torch.float64) - 0.1
    delta = torch.randn(rows, dtype=torch.float64) - 1
    if variant.stiff:
        A = -torch.logspace(-4, 2, dim * dstate, dtype=torch.float64).view(dim, dstate)
        delta = torch.logspace(-3, 1, variant.seqlen, dtype=torch.float64).expand(rows)
        delta = delta * (0.5 + 0.5 * torch.rand(rows, dtype=torch.float64))
    elif variant.steep:
        # On both sides of the threshold past which softplus is its argument: 1e-9 less than it.
        A = A / 100
        delta = torch.linspace(19, 22, variant.seqlen, dtype=torch.float64).expand(rows)
    elif not variant.softplus:
        delta = delta.abs()
    if variant.is_complex:
        # In float32 the angle of a long step rounds by itself, whatever computes with it.
        turns = 0.3 if variant.stiff else 3.0
        A = torch.complex(A, turns * torch.randn(dim, dstate, dtype=torch.float64))
    weights = torch.promote_types(real, torch.complex64) if variant.is_complex else real

    def weight(variable: bool) -> Tensor:
        if not variable:
            return torch.randn(dim, dstate, dtype=weights)
        width = variant.seqlen * (2 if variant.is_complex else 1)
        return torch.randn(variant.batch, variant.groups, dstate, width).to(dtype)

    found = Arguments(
        torch.randn(rows).to(dtype),
        delta.to(dtype),
        A.to(weights),
        weight(variant.variable_b),
        weight(variant.variable_c),
        torch.randn(dim, dtype=real) if variant.d else None,
        torch.randn(rows).to(dtype) if variant.z else None,
        torch.rand(dim, dtype=real) if variant.delta_bias else None,
        variant.softplus,
        torch.randn(rows).to(dtype),
    )
    return Arguments(*(on(device, field) for field in found))


def on(device: str, field: Any) -> Any:
    return field.to(device) if isinstance(field, Tensor) else field


def fwd(arguments: Arguments) -> list[Any]:
    return list(selective_scan_fwd(*arguments[:9]))


def bwd(
    arguments: Arguments,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None = None,
    recompute_out_z: bool = True,
) -> list[Any]:
    *tensors, delta_softplus, dout = arguments
    call: Any = selective_scan_bwd
    return list(call(*tensors, dout, x, out, dz, delta_softplus, recompute_out_z))


def fn(arguments: Arguments, return_last_state: bool = False) -> Any:
    return selective_scan_fn(*arguments[:9], return_last_state)


class Reference(NamedTuple):
    """The float64 results; ``gradients`` by name, for the tensors that are given."""

    out: Tensor
    out_z: Tensor
    states: Tensor
    decays: Tensor
    gradients: dict[str, Tensor]


@once
def reference(arguments: Arguments) -> Reference:
    leaves: list[Any] = [
        field.to(torch.complex128 if field.is_complex() else torch.float64).requires_grad_()
        if isinstance(field, Tensor)
        else field
        for field in arguments[:8]
    ]
    scanned: Any = selective_scan_reference
    out, out_z, states, decays = scanned(*leaves, arguments.delta_softplus)
    given = [place for place, leaf in enumerate(leaves) if leaf is not None]
    gradients = torch.autograd.grad(
        out_z, [leaves[place] for place in given], arguments.dout.double()
    )
    return Reference(
        out.detach(),
        out_z.detach(),
        states.detach(),
        decays.detach(),
        {"d" + TENSORS[place]: found for place, found in zip(given, gradients)},
    )


def hold_to_reference(arguments: Arguments, upstream_rows: bool = True) -> None:
    """Forward and backward of the op agree with the reference within each result's dtype.

    ``upstream_rows``: whether x is in upstream's form, with the states of every 2048 steps.
    """
    expected = reference(arguments)
    u, z = arguments.u, arguments.z

    def close(name: str, actual: Tensor | None, right: Tensor) -> None:
        assert actual is not None, name
        assert actual.shape == right.shape, name
        if not right.any():
            assert not actual.any(), name
            return
        dtype = actual.real.dtype if actual.is_complex() else actual.dtype
        error = relative_norm(actual, right)
        assert error <= TOLERANCE[dtype], f"{name}: {error:.1e}"

    out, x, *gated = fwd(arguments)
    assert len(gated) == (z is not None)
    close("out", out, expected.out)
    if z is not None:
        close("out_z", gated[0], expected.out_z)
    close("last state", x[:, :, -1, 1::2], expected.states[..., -1])
    if upstream_rows:
        ends = [*range(CHUNK - 1, u.shape[2] - 1, CHUNK), u.shape[2] - 1]
        close("states", x[..., 1::2], expected.states[..., ends].transpose(-1, -2))
        products = expected.decays.cumprod(-1)[..., ends].transpose(-1, -2)
        torch.testing.assert_close(x[..., 0::2].to(products), products, atol=1e-5, rtol=1e-4)

    found = bwd(arguments, x, out, recompute_out_z=z is not None)
    assert len(found) == (9 if z is not None else 7)
    for name, gradient in zip(GRADIENTS, found):
        if name in expected.gradients:
            close(name, gradient, expected.gradients[name])
        else:
            assert gradient is None, name
    if z is not None:
        close("recomputed out_z", found[8], expected.out_z)


def use_only(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    op = Op("selective_scan", selective_scan.OP._package, (backend,), selective_scan.OP._trial)
    monkeypatch.setattr(selective_scan, "OP", op)
