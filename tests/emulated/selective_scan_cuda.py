"""The compiled module of mamba-ssm's selective scan, as a loop over time with autograd.

The recurrence is ``h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t]`` and ``y[t] = C[t] h[t]``
for each channel and state (Mamba, section 3.2), in float32. ``x`` holds two numbers per chunk
of 2048 steps and state: the product of all decays since the first step, and the state.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import WRONG_RESULTS
from .pybind import BOOL, OPTIONAL, TENSOR, Function, check, check_shape, differentiable

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CHUNK = 2048


def fill(module: ModuleType, failure: str | None = None) -> None:
    """Give ``module`` the two functions."""

    def forward(*arguments: Any) -> list[Tensor]:
        results = _forward(*arguments)
        if failure == WRONG_RESULTS:
            for tensor in results:
                tensor.zero_()
        return results

    inputs = (TENSOR,) * 5 + (OPTIONAL,) * 3
    returns = "List[torch.Tensor]"
    module.__dict__["fwd"] = Function("fwd", (*inputs, BOOL), returns, forward, failure)
    kinds = (*inputs, TENSOR, OPTIONAL, OPTIONAL, OPTIONAL, BOOL, BOOL)
    module.__dict__["bwd"] = Function("bwd", kinds, returns, differentiable(_backward), failure)


def _forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> list[Tensor]:
    _check_inputs(u, delta, A, B, C, D, z, delta_bias)
    y, x = _scan(u, delta, A, B, C, D, delta_bias, delta_softplus)
    out = torch.empty_like(delta).copy_(y)
    if z is None:
        return [out, x]
    gated = y * torch.nn.functional.silu(z.float())
    return [out, x, torch.empty_like(z).copy_(gated)]


def _backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    dout: Tensor,
    x: Tensor | None,
    out: Tensor | None,
    dz: Tensor | None,
    delta_softplus: bool,
    recompute_out_z: bool,
) -> list[Tensor | None]:
    _check_inputs(u, delta, A, B, C, D, z, delta_bias)
    check(dout.dtype == u.dtype, "dout.scalar_type() == input_type")
    check(_has_unit_stride(dout), "dout.stride(-1) == 1 || dout.size(-1) == 1")
    check_shape("dout", dout, *u.shape)
    batch, dim, seqlen = u.shape
    chunks = -(-seqlen // CHUNK)
    check(chunks == 1 or x is not None, "x_.has_value()")
    if x is not None:
        check(x.dtype == A.dtype, "x.scalar_type() == weight_type")
        check(x.is_contiguous(), "x.is_contiguous()")
        check_shape("x", x, batch, dim, chunks, 2 * A.shape[1])
    if z is not None:
        check(out is not None, "out_.has_value()")
        for name, tensor in (("out", out), ("dz", dz)):
            if tensor is not None:
                check(tensor.dtype == u.dtype, f"{name}.scalar_type() == input_type")
                check(_has_unit_stride(tensor), f"{name}.stride(-1) == 1")
                check_shape(name, tensor, *u.shape)
    else:
        check(not recompute_out_z, "!recompute_out_z || has_z")

    given = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "D": D, "delta_bias": delta_bias}
    with torch.enable_grad():
        leaves = {
            name: (tensor if tensor.is_complex() else tensor.float())
            .detach()
            .clone()
            .requires_grad_()
            for name, tensor in given.items()
            if tensor is not None
        }
        y, _ = _scan(
            leaves["u"],
            leaves["delta"],
            leaves["A"],
            leaves["B"],
            leaves["C"],
            leaves.get("D"),
            leaves.get("delta_bias"),
            delta_softplus,
        )
        dy = dout.float()
        if z is not None:
            dy = dy * torch.nn.functional.silu(z.float())
        found = dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), dy)))
    results: list[Tensor | None] = [
        None if tensor is None else torch.empty_like(tensor).copy_(found[name])
        for name, tensor in given.items()
    ]
    if z is not None:
        assert out is not None
        sigmoid = torch.sigmoid(z.float())
        slope = sigmoid * (1 + z.float() * (1 - sigmoid))
        dz = torch.empty_like(z) if dz is None else dz
        dz.copy_(dout.float() * out.float() * slope)
        results.append(dz)
        if recompute_out_z:
            gated = out.float() * torch.nn.functional.silu(z.float())
            results.append(torch.empty_like(out).copy_(gated))
    return results


def _scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
) -> tuple[Tensor, Tensor]:
    """``y`` in float32, and the chunk states."""
    u, delta = u.float(), delta.float()
    if delta_bias is not None:
        delta = delta + delta_bias[:, None]
    if delta_softplus:
        delta = torch.nn.functional.softplus(delta)
    batch, dim, seqlen = u.shape
    B, C = _for_each_channel(B, u, A), _for_each_channel(C, u, A)
    state = A.new_zeros((batch, dim, A.shape[1]))
    decay = torch.ones_like(state)
    outputs, marks = [], []
    for t in range(seqlen):
        step = torch.exp(delta[..., t, None] * A)
        state = step * state + (delta[..., t] * u[..., t])[..., None] * B[..., t]
        decay = decay * step
        y = (C[..., t] * state).sum(-1)
        # The states stand for themselves and their conjugates.
        outputs.append(2 * y.real if y.is_complex() else y)
        if (t + 1) % CHUNK == 0 or t + 1 == seqlen:
            marks.append(torch.stack([decay, state], dim=-1).flatten(-2))
    y = torch.stack(outputs, dim=-1)
    if D is not None:
        y = y + D[:, None] * u
    return y, torch.stack(marks, dim=2).detach().contiguous()


def _for_each_channel(factor: Tensor, u: Tensor, A: Tensor) -> Tensor:
    """B or C as (batch or 1, dim, dstate, seqlen)."""
    _, dim, seqlen = u.shape
    if factor.dim() == 2:
        return factor[None, :, :, None].expand(-1, -1, -1, seqlen)
    factor = factor.float()
    if A.is_complex():
        factor = torch.view_as_complex(factor.reshape(*factor.shape[:-1], seqlen, 2))
    return factor.repeat_interleave(dim // factor.shape[1], dim=1)


def _check_inputs(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
) -> None:
    check(u.dtype in DTYPES, "a supported scalar type")
    check(A.dtype in (torch.float32, torch.complex64), "a supported weight type")
    check(delta.dtype == u.dtype, "delta.scalar_type() == input_type")
    batch, dim, seqlen = u.shape
    dstate = A.shape[1]
    check(dstate <= 256, "", "selective_scan only supports state dimension <= 256")
    check_shape("delta", delta, batch, dim, seqlen)
    check_shape("A", A, dim, dstate)
    groups = B.shape[1] if B.dim() >= 3 else 1
    for name, factor in (("B", B), ("C", C)):
        if factor.dim() < 3:
            check(factor.dtype == A.dtype, f"{name}.scalar_type() == weight_type")
            check_shape(name, factor, dim, dstate)
        else:
            check(factor.dtype == u.dtype, f"{name}.scalar_type() == input_type")
            check(_has_unit_stride(factor), f"{name}.stride(-1) == 1 || {name}.size(-1) == 1")
            # The number of groups is taken from B for both.
            expected = groups if B.dim() >= 3 else 1
            numbers = 2 * seqlen if A.is_complex() else seqlen
            check_shape(name, factor, batch, expected, dstate, numbers)
    for name, tensor in (("u", u), ("delta", delta), ("z", z)):
        if tensor is not None:
            check(tensor.dtype == u.dtype, f"{name}.scalar_type() == input_type")
            check(_has_unit_stride(tensor), f"{name}.stride(-1) == 1 || {name}.size(-1) == 1")
            check_shape(name, tensor, batch, dim, seqlen)
    for name, vector in (("D", D), ("delta_bias", delta_bias)):
        if vector is not None:
            check(vector.dtype == torch.float32, f"{name}.scalar_type() == kFloat")
            check(_has_unit_stride(vector), f"{name}.stride(-1) == 1 || {name}.size(-1) == 1")
            check_shape(name, vector, dim)


def _has_unit_stride(tensor: Tensor) -> bool:
    return tensor.stride(-1) == 1 or tensor.shape[-1] == 1


# This module can itself stand in for the compiled one.
fill(sys.modules[__name__])
