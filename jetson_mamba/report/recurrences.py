"""What the targets compute, as plain loops over time: ``verify`` evaluates them in float64.

Each function states its recurrence step by step, with no chunks, no layout tricks and nothing of
this package's ops, so that agreement means something. Autograd gives the gradients. Sizes:
batch, dim, seqlen; dstate states per channel or head; nheads heads of headdim channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def silu(x: Tensor) -> Tensor:
    """``x`` times its sigmoid."""
    return x / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    """``log(1 + exp(x))``, without overflow."""
    return torch.logaddexp(x, torch.zeros_like(x))


def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(batch, dim, seqlen) by the taps (dim, width) of each channel, causally, through SiLU."""
    width = weight.shape[1]
    outs = []
    for t in range(x.shape[2]):
        total = bias.expand(x.shape[0], -1)
        for lag in range(min(width, t + 1)):
            total = total + weight[:, width - 1 - lag] * x[:, :, t - lag]
        outs.append(silu(total))
    return torch.stack(outs, 2)


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """u, delta, z (batch, dim, seqlen), A (dim, dstate), B, C (batch, dstate, seqlen).

    Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces", section 3.2.
    """
    step = softplus(delta + delta_bias[:, None])
    state = torch.zeros(*u.shape[:2], A.shape[1], dtype=u.dtype)
    outs = []
    for t in range(u.shape[2]):
        dt = step[:, :, t, None]
        state = state * torch.exp(dt * A) + dt * u[:, :, t, None] * B[:, None, :, t]
        outs.append((state * C[:, None, :, t]).sum(2) + D * u[:, :, t])
    return torch.stack(outs, 2) * silu(z)


def mamba_inner(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    A: Tensor,
    D: Tensor,
    delta_bias: Tensor,
) -> Tensor:
    """xz (batch, 2 dim, seqlen) through a Mamba block after its input projection; figure 3 there.

    Returns (batch, seqlen, d_model).
    """
    dstate, rank = A.shape[1], delta_proj_weight.shape[1]
    x, z = xz.chunk(2, 1)
    x = convolution(x, conv1d_weight[:, 0], conv1d_bias)
    low, B, C = torch.split(
        torch.einsum("od,bdl->bol", x_proj_weight, x), [rank, dstate, dstate], 1
    )
    delta = torch.einsum("dr,brl->bdl", delta_proj_weight, low)
    y = selective_scan(x, delta, A, B, C, D, z, delta_bias)
    return torch.einsum("od,bdl->blo", out_proj_weight, y)


def chunk_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    z: Tensor,
    dt_bias: Tensor,
) -> Tensor:
    """x, z (batch, seqlen, nheads, headdim), dt (batch, seqlen, nheads), B, C (batch, seqlen, 1,
    dstate), A, D, dt_bias (nheads,).

    Dao and Gu, "Transformers are SSMs", section 6, as a recurrence.
    """
    step = softplus(dt + dt_bias)
    state = torch.zeros(x.shape[0], *x.shape[2:], B.shape[3], dtype=x.dtype)
    outs = []
    for t in range(x.shape[1]):
        decay = torch.exp(step[:, t] * A)[:, :, None, None]
        driven = (step[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None, :]
        state = state * decay + driven
        out = (state * C[:, t, :, None, :]).sum(3) + D[:, None] * x[:, t]
        outs.append(out * silu(z[:, t]))
    return torch.stack(outs, 1)


def split_conv1d_scan(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    rmsnorm_weight: Tensor,
    outproj_weight: Tensor,
) -> Tensor:
    """A Mamba-2 block after its input projection, gate before norm; section 7 there.

    zxbcdt (batch, seqlen, dim + (dim + 2 dstate) + nheads); returns (batch, seqlen, d_model).
    """
    nheads, dim, channels = A.shape[0], rmsnorm_weight.shape[0], conv1d_weight.shape[0]
    dstate = (channels - dim) // 2
    z, xBC, dt = torch.split(zxbcdt, [dim, channels, nheads], 2)
    xBC = convolution(xBC.mT, conv1d_weight, conv1d_bias).mT
    x, B, C = torch.split(xBC, [dim, dstate, dstate], 2)
    heads = (*x.shape[:2], nheads, dim // nheads)
    y = chunk_scan(
        x.reshape(heads), dt, A, B[:, :, None], C[:, :, None], D, z.reshape(heads), dt_bias
    ).reshape(x.shape)
    y = y * torch.rsqrt((y * y).mean(2, keepdim=True) + 1e-5) * rmsnorm_weight
    return torch.einsum("bld,od->blo", y, outproj_weight)
