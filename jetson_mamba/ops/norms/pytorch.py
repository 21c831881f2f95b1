"""The norms in PyTorch, for every device, with their gradients written out."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .contract import Case, Gate, Gradients, Implementation, Normed, Options


def load(case: Case) -> Implementation:
    """The implementation; it serves every case."""
    return IMPLEMENTATION


@torch.no_grad()
def forward(
    x: Tensor,
    residual: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    total_dtype: torch.dtype | None,
    out_dtype: torch.dtype,
    options: Options,
    with_rstd: bool,
) -> Normed:
    """As :class:`~.contract.Implementation` says."""
    total = x.float() if residual is None else x.float() + residual
    silu = None if z is None else functional.silu(z.float())
    gated = total if silu is None or options.gate == Gate.OUTPUT else total * silu
    normed, rstd = _normed(gated, options)
    out = normed * weight if bias is None else normed * weight + bias
    if silu is not None and options.gate == Gate.OUTPUT:
        out = out * silu
    return Normed(
        out.to(out_dtype),
        None if total_dtype is None else total.to(total_dtype),
        rstd.squeeze(-1).t().contiguous() if with_rstd else None,
    )


@torch.no_grad()
def backward(
    source: Tensor,
    z: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    dtotal: Tensor | None,
    residual_dtype: torch.dtype | None,
    options: Options,
    dz: Tensor | None,
) -> Gradients:
    """As :class:`~.contract.Implementation` says; dx has the dtype of z or dout."""
    x, gradient = source.float(), dout.float()
    silu = slope = None
    if z is not None:
        open_ = torch.sigmoid(z.float())
        silu = z.float() * open_
        slope = open_ + silu * (1 - open_)
    is_before = options.gate == Gate.INPUT
    normed, rstd = _normed(x * silu if silu is not None and is_before else x, options)
    dgate = None
    if silu is not None and not is_before:
        ungated = normed * weight if bias is None else normed * weight + bias
        dgate = gradient * ungated
        gradient = gradient * silu
    dweight = (gradient * normed).sum(0)
    scaled = _grouped(gradient * weight, options)
    grouped = _grouped(normed, options)
    dx = scaled - grouped * (scaled * grouped).mean(-1, keepdim=True)
    if not options.is_rms_norm:
        dx = dx - scaled.mean(-1, keepdim=True)
    dx = (dx * rstd).flatten(-2)
    if silu is not None and is_before:
        dgate, dx = dx * x, dx * silu
    if dtotal is not None:
        dx = dx + dtotal
    if dgate is not None and slope is not None and z is not None:
        dz = (torch.empty_like(z) if dz is None else dz).copy_(dgate * slope)
    return Gradients(
        dx.to(dout.dtype if z is None else z.dtype),
        None if residual_dtype is None else dx.to(residual_dtype),
        dz,
        dweight.to(weight.dtype),
        None if bias is None else gradient.sum(0).to(bias.dtype),
    )


IMPLEMENTATION = Implementation(forward, backward)


def _grouped(x: Tensor, options: Options) -> Tensor:
    return torch.unflatten(x, -1, (-1, options.group))


def _normed(x: Tensor, options: Options) -> tuple[Tensor, Tensor]:
    """(rows, dim), and one over each group's root mean square, (rows, groups, 1)."""
    grouped = _grouped(x, options)
    if not options.is_rms_norm:
        grouped = grouped - grouped.mean(-1, keepdim=True)
    rstd = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + options.eps)
    return (grouped * rstd).flatten(-2), rstd
