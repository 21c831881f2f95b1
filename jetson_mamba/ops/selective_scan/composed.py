"""The selective scan as plain tensor operations, which torch traces, transforms and differentiates.

Nothing is written in place and no address is taken, so any of torch's transforms applies, over
any of the arguments. The recurrence ``h[t] = a[t] h[t-1] + v[t]`` is unrolled over blocks of
steps, all blocks side by side; what the blocks hand on is the same recurrence over fewer steps.
No decay is divided by, so that the strongest is as exact as in a loop.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.tracing import fixed, sizes

from .contract import CHUNK, Gradients, Scan

BLOCK = 16
SOFTPLUS_THRESHOLD = 20.0


def output(scan: Scan) -> tuple[Tensor, Tensor]:
    """``out_z``, or without z ``out``, and the last state; arguments as ``contract`` says."""
    out, states, out_z = _scanned(scan)
    return (out if out_z is None else out_z), _by_channel(states[-1])


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """``out``, ``x`` in upstream's form and ``out_z``: as ``contract.Scanned``."""
    out, states, out_z = _scanned(scan)
    seqlen = states.shape[0]
    ends = [*range(CHUNK - 1, seqlen - 1, CHUNK), seqlen - 1]
    steps = _step_sizes(scan)
    rows = []
    for end in ends:
        decay = torch.exp(steps[..., : end + 1].sum(-1).unsqueeze(-1) * scan.A)
        rows.append(torch.stack((decay, _by_channel(states[end])), -1).flatten(-2))
    return out, torch.stack(rows, 2), out_z


def backward(scan: Scan, dout: Tensor) -> Gradients:
    """Every gradient of the scan, itself differentiable; ``out_z`` with z, asked for or not."""

    def final(*tensors: Any) -> Tensor:
        fields: list[Any] = [*tensors, scan.delta_softplus]
        return output(Scan(*fields))[0]

    needed = [tensor is not None for tensor in scan[:8]]
    found: Any = twice.gradients(final, scan[:8], needed, (dout,))
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias = found
    out_z = None if scan.z is None else final(*scan[:8])
    return Gradients(du, ddelta, dA, dB, dC, dD, ddelta_bias, dz, out_z)


def _scanned(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """``out``, the states (seqlen, batch, groups, channels, dstate), and ``out_z``."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    u, delta, B, C, z = fixed(u), fixed(delta), fixed(B), fixed(C), fixed(z)
    scan = Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    (batch, dim, seqlen), dstate = sizes(u), sizes(A)[1]
    groups = next((sizes(weight)[1] for weight in (B, C) if weight.dim() == 4), 1)
    real = A.real.dtype if A.is_complex() else A.dtype

    signal = u.to(real)
    steps = _step_sizes(scan)
    by_group = (seqlen, batch, groups, dim // groups, 1)
    rates = A.reshape(groups, dim // groups, dstate)
    decays = torch.exp(_by_step(steps).reshape(by_group) * rates)
    driven = _by_step(steps * signal).reshape(by_group)
    states = _recurrence(decays, driven * _weight_by_step(B, groups, A))
    read = (states * _weight_by_step(C, groups, A)).sum(-1)
    y = 2 * read.real if A.is_complex() else read
    # A caller may view it in other shapes, as it may what a kernel has written.
    y = y.reshape(seqlen, batch, dim).permute(1, 2, 0).contiguous()
    if D is not None:
        y = y + signal * D.unsqueeze(-1)
    out_z = None if z is None else (y * silu(z.to(real))).to(u.dtype)
    return y.to(u.dtype), states, out_z


def _step_sizes(scan: Scan) -> Tensor:
    """(batch, dim, seqlen), in the dtype of A's parts."""
    steps = scan.delta.to(scan.A.real.dtype if scan.A.is_complex() else scan.A.dtype)
    if scan.delta_bias is not None:
        steps = steps + scan.delta_bias.unsqueeze(-1)
    return softplus(steps, threshold=SOFTPLUS_THRESHOLD) if scan.delta_softplus else steps


def _by_step(signal: Tensor) -> Tensor:
    """(batch, dim, seqlen) as (seqlen, batch, dim)."""
    return signal.permute(2, 0, 1)


def _by_channel(state: Tensor) -> Tensor:
    """(batch, groups, channels, dstate) as (batch, dim, dstate)."""
    return state.flatten(1, 2)


def _weight_by_step(weight: Tensor, groups: int, A: Tensor) -> Tensor:
    """B or C, to broadcast with (seqlen, batch, groups, channels, dstate)."""
    if weight.dim() == 2:
        dim, dstate = sizes(weight)
        return weight.reshape(groups, dim // groups, dstate)
    if A.is_complex():
        batch, groups, dstate, width = sizes(weight)
        pairs = weight.to(A.real.dtype).reshape(batch, groups, dstate, width // 2, 2)
        weight = torch.view_as_complex(pairs.contiguous())
    return weight.to(A.dtype).permute(3, 0, 1, 2).unsqueeze(3)


def _recurrence(decays: Tensor, inputs: Tensor) -> Tensor:
    """``h[t] = decays[t] h[t-1] + inputs[t]`` along the first axis, from zero."""
    shape = sizes(inputs)
    steps, others = shape[0], shape[1:]
    if steps <= BLOCK:
        return torch.stack(_unrolled(decays.unbind(0), inputs.unbind(0)))
    missing = -steps % BLOCK
    if missing:
        # Steps that keep the state.
        decays = torch.cat((decays, torch.ones_like(decays[:missing])))
        inputs = torch.cat((inputs, torch.zeros_like(inputs[:missing])))
    blocks = ((steps + missing) // BLOCK, BLOCK, *others)
    each_decay = decays.reshape(blocks).unbind(1)
    inner = _unrolled(each_decay, inputs.reshape(blocks).unbind(1))
    passed = [each_decay[0]]
    for decay in each_decay[1:]:
        passed.append(passed[-1] * decay)
    ends = _recurrence(passed[-1], inner[-1])
    before = torch.cat((torch.zeros_like(ends[:1]), ends[:-1]))
    states = torch.stack(inner, 1) + torch.stack(passed, 1) * before.unsqueeze(1)
    return states.flatten(0, 1)[:steps]


def _unrolled(decays: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> list[Tensor]:
    states = [inputs[0]]
    for decay, driven in zip(decays[1:], inputs[1:]):
        states.append(decay * states[-1] + driven)
    return states
