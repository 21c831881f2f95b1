"""The selective scan as a plain loop over time, in float64: what every backend is held to.

Written from Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
section 3.2, channel by channel with no layout tricks, and independent of the package under test.
Autograd differentiates it.
"""

from __future__ import annotations

import torch
from torch import Tensor


def selective_scan_reference(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(out before the gate, out after it, states by step, decays by step), the latter two
    (batch, dim, dstate, seqlen). Every argument is brought to float64 or complex128 first.
    """
    dim, seqlen = u.shape[1:]
    u, A = _double(u), _double(A)
    step = _double(delta)
    if delta_bias is not None:
        step = step + _double(delta_bias).reshape(dim, 1)
    if delta_softplus:
        step = torch.where(step > 20, step, torch.log1p(torch.exp(step.clamp(max=20))))
    B = _of_each_channel(B, dim, seqlen, A.is_complex())
    C = _of_each_channel(C, dim, seqlen, A.is_complex())

    state = torch.zeros(u.shape[0], *A.shape, dtype=A.dtype, device=u.device)
    states, decays, outputs = [], [], []
    # Autograd takes one step's part of a tensor apart by `unbind` without touching the others.
    for u_t, step_t, B_t, C_t in zip(*(tensor.unbind(-1) for tensor in (u, step, B, C))):
        decay = torch.exp(step_t[..., None] * A)
        state = decay * state + (step_t * u_t)[..., None] * B_t
        y = (C_t * state).sum(-1)
        outputs.append(2 * y.real if A.is_complex() else y)
        states.append(state)
        decays.append(decay)
    out = torch.stack(outputs, -1)
    if D is not None:
        out = out + _double(D).reshape(dim, 1) * u
    gated = out
    if z is not None:
        gated = out * _double(z) / (1 + torch.exp(-_double(z)))
    return out, gated, torch.stack(states, -1), torch.stack(decays, -1)


def _double(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _of_each_channel(weight: Tensor, dim: int, seqlen: int, is_complex: bool) -> Tensor:
    """B or C as (batch or 1, dim, dstate, seqlen)."""
    weight = _double(weight)
    if weight.dim() == 2:
        return weight[None, :, :, None].expand(1, -1, -1, seqlen)
    if is_complex:
        weight = torch.complex(weight[..., 0::2], weight[..., 1::2])
    if weight.dim() == 3:
        weight = weight[:, None]
    group_of = torch.arange(dim, device=weight.device) // (dim // weight.shape[1])
    return weight[:, group_of]
