"""Mamba-2's mixer in float64, one step of time after the other.

The scan stands here by itself too. Written from the recurrence and not from the chunked form, with
autograd for the gradients, so that nothing is shared with what it is compared to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def ssd_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    *,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: tuple[float, float] = (0.0, math.inf),
) -> tuple[Tensor, Tensor, Tensor]:
    """The output, the last state, and every state (batch, seqlen, nheads, headdim, dstate)."""
    batch, seqlen, nheads, headdim = x.shape
    per_group = nheads // B.shape[2]
    if dt_bias is not None:
        dt = dt + dt_bias
    if dt_softplus:
        dt = torch.logaddexp(dt, torch.zeros_like(dt))
    low, high = dt_limit
    inside = (dt >= low) & (dt <= high)
    dt = torch.where(inside, dt, dt.detach().clamp(low, high))

    state = x.new_zeros(batch, nheads, headdim, B.shape[3])
    if initial_states is not None:
        state = initial_states
    sequence = torch.zeros(batch, dtype=torch.int64)
    outs, states = [], []
    for t in range(seqlen):
        b, c = (M[:, t].repeat_interleave(per_group, dim=1) for M in (B, C))
        if seq_idx is not None:
            same = seq_idx[:, t] == sequence
            state = torch.where(same[:, None, None, None], state, torch.zeros_like(state))
            sequence = seq_idx[:, t]
        step = dt[:, t]
        if seq_idx is not None:
            step = step * (seq_idx[:, t, None] >= 0)
        state = state * torch.exp(step * A)[:, :, None, None]
        state = state + torch.einsum("bh,bhp,bhn->bhpn", step, x[:, t], b)
        out = torch.einsum("bhpn,bhn->bhp", state, c)
        if D is not None:
            out = out + x[:, t] * (D if D.dim() == 2 else D[:, None])
        if z is not None:
            out = out * silu(z[:, t])
        outs.append(out)
        states.append(state)
    return torch.stack(outs, 1), state, torch.stack(states, 1)


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Causal, depthwise, over (batch, seqlen, channels), one tap after the other."""
    seqlen, width = x.shape[1], weight.shape[1]
    out = torch.zeros_like(x)
    for lag in range(min(width, seqlen)):
        tap = x[:, : seqlen - lag] * weight[:, width - 1 - lag]
        if seq_idx is not None:
            same = seq_idx[:, lag:] == seq_idx[:, : seqlen - lag]
            tap = tap * same[..., None]
        out = out + torch.cat([x.new_zeros(x.shape[0], lag, x.shape[2]), tap], 1)
    if bias is not None:
        out = out + bias
    return out if activation is None else silu(out)


def gated_rmsnorm(
    x: Tensor, z: Tensor, weight: Tensor, *, eps: float, ngroups: int, norm_before_gate: bool
) -> Tensor:
    """RMSNorm over each of ``ngroups`` runs of channels, with the gate after or before it."""
    if not norm_before_gate:
        x = x * silu(z)
    runs = [run / torch.sqrt((run**2).mean(-1, keepdim=True) + eps) for run in x.chunk(ngroups, -1)]
    out = torch.cat(runs, -1) * weight
    return out * silu(z) if norm_before_gate else out


def ssd_mixer(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    *,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    initial_states: Tensor | None = None,
    seq_idx: Tensor | None = None,
    dt_limit: tuple[float, float] = (0.0, math.inf),
    activation: str | None = "silu",
    rmsnorm_weight: Tensor | None = None,
    rmsnorm_eps: float = 1e-6,
    outproj_weight: Tensor | None = None,
    outproj_bias: Tensor | None = None,
    headdim: int | None = None,
    ngroups: int = 1,
    norm_before_gate: bool = True,
) -> tuple[Tensor, Tensor]:
    """Everything of a Mamba-2 block after its input projection; the output and the last state."""
    nheads = A.shape[0]
    headdim = D.shape[1] if headdim is None else headdim
    dim = nheads * headdim
    channels = conv1d_weight.shape[0]
    mlp = (zxbcdt.shape[2] - dim - channels - nheads) // 2
    a, b, z, xBC, dt = torch.split(zxbcdt, [mlp, mlp, dim, channels, nheads], -1)
    xBC = convolution(xBC, conv1d_weight, conv1d_bias, seq_idx, activation)
    dstate = (channels - dim) // 2 // ngroups
    x, B, C = torch.split(xBC, [dim, ngroups * dstate, ngroups * dstate], -1)
    heads = (*x.shape[:2], nheads, headdim)
    groups = (*x.shape[:2], ngroups, dstate)
    out, state, _ = ssd_scan(
        x.reshape(heads),
        dt,
        A,
        B.reshape(groups),
        C.reshape(groups),
        D=D,
        z=z.reshape(heads) if rmsnorm_weight is None else None,
        dt_bias=dt_bias,
        initial_states=initial_states,
        seq_idx=seq_idx,
        dt_softplus=True,
        dt_limit=dt_limit,
    )
    out = out.reshape(x.shape)
    if rmsnorm_weight is not None:
        out = gated_rmsnorm(
            out,
            z,
            rmsnorm_weight,
            eps=rmsnorm_eps,
            ngroups=ngroups,
            norm_before_gate=norm_before_gate,
        )
    out = torch.cat([silu(a) * b, out], -1)
    if outproj_weight is not None:
        out = torch.einsum("bld,od->blo", out, outproj_weight)
        if outproj_bias is not None:
            out = out + outproj_bias
    return out, state
