"""Mamba-3 in float64, one step of time after the other, with complex numbers for the rotation.

Written from the recurrence and not from the chunked form, with autograd for the gradients, so
that nothing is shared with what it is compared to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ssd import silu


def rotate(x: Tensor, angle: Tensor, halves: bool) -> Tensor:
    """x (..., dstate) with as many of its pairs turned as there are angles, as complex numbers."""
    half = x.shape[-1] // 2
    real, imaginary = (x[..., :half], x[..., half:]) if halves else (x[..., ::2], x[..., 1::2])
    still = torch.zeros(*angle.shape[:-1], half - angle.shape[-1], dtype=angle.dtype)
    angle = torch.cat([angle, still], -1)
    whole = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
    parts = [whole.real, whole.imag]
    return torch.cat(parts, -1) if halves else torch.stack(parts, -1).flatten(-2)


def mamba3(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    adt: Tensor,
    dt: Tensor,
    trap: Tensor,
    q_bias: Tensor,
    k_bias: Tensor,
    angles: Tensor,
    *,
    D: Tensor | None = None,
    v_proj: Tensor | None = None,
    states: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
    halves: bool = False,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Outputs (batch, seqlen, rank, nheads, headdim), and the states after the last step.

    Shapes: q, k (batch, seqlen, rank, ngroups, dstate), biases (nheads, rank, dstate), v (batch,
    seqlen, nheads, headdim), adt, dt, trap (batch, nheads, seqlen), angles (batch, seqlen, nheads,
    angles), v_proj (nheads, rank, headdim); states as the op returns them, K with its rank.
    """
    batch, seqlen, rank, ngroups, dstate = q.shape
    nheads, headdim = v.shape[2:]
    if v_proj is None:
        v_proj = v.new_ones(nheads, rank, headdim)
    if states is None:
        angle = v.new_zeros(batch, nheads, angles.shape[-1])
        h = v.new_zeros(batch, nheads, headdim, dstate)
        k_before = v.new_zeros(batch, rank, nheads, dstate)
        v_before = v.new_zeros(batch, nheads, headdim)
    else:
        angle, h, k_before, v_before = states
    outs = []
    for t in range(seqlen):
        step = dt[:, :, t]
        part = 1 / (1 + torch.exp(-trap[:, :, t]))
        angle = angle + math.pi * torch.tanh(angles[:, t]) * step[..., None]
        heads = [each[:, t].repeat_interleave(nheads // ngroups, 2) for each in (q, k)]
        biased = [each + bias.permute(1, 0, 2) for each, bias in zip(heads, (q_bias, k_bias))]
        q_now, k_now = (rotate(each, angle[:, None], halves) for each in biased)
        decay = torch.exp(adt[:, :, t])
        h = decay[..., None, None] * h
        for row in range(rank):
            for weight, inputs, keys in (
                (decay * step * (1 - part), v_before, k_before),
                (step * part, v[:, t], k_now),
            ):
                u = weight[..., None] * inputs * v_proj[:, row]
                h = h + u[..., :, None] * keys[:, row, :, None, :]
        rows = []
        for row in range(rank):
            y = (h * q_now[:, row, :, None, :]).sum(-1)
            if D is not None:
                y = y + D[:, None] * v[:, t] * v_proj[:, row]
            rows.append(y)
        outs.append(torch.stack(rows, 1))
        k_before, v_before = k_now, v[:, t]
    return torch.stack(outs, 1), (angle % (2 * math.pi), h, k_before, v_before)


def mimo_output(
    y: Tensor,
    z: Tensor | None,
    z_proj: Tensor | None,
    out_proj: Tensor | None,
    norm: tuple[Tensor, float] | None,
) -> Tensor:
    """What becomes of the outputs of a step: a norm of each head, the gate, their sum."""
    if norm is not None:
        weight, eps = norm
        root = torch.sqrt((y**2).mean(-1, keepdim=True) + eps)
        y = y / root * weight.reshape(y.shape[-2:])
    if z is not None and z_proj is not None:
        y = y * silu(z[:, :, None] * z_proj.permute(1, 0, 2))
    return y if out_proj is None else torch.einsum("blrhp,hrp->blhp", y, out_proj)
