"""The selective scan as plain tensor operations, on which every transform of torch works.

Nothing is written in place and no address is taken, so any of torch's transforms applies, over
any of the arguments. The recurrence ``h[t] = a[t] h[t-1] + v[t]`` is unrolled over blocks of
steps, all blocks side by side; what the blocks hand on is the same recurrence over fewer steps.
No decay is divided by, so that the strongest is as exact as in a loop. What is unrolled does not
depend on the length, so that a trace is right at others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import silu, softplus

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.tracing import beside, fixed, is_traced, missing, sizes, unflatten

from .contract import CHUNK, SCAN, Gradients, Scan

BLOCK = 16
# Of a trace: 65536 steps, and those that it was taken with.
TRACED_LEVELS = 4
SOFTPLUS_THRESHOLD = 20.0


def output(scan: Scan) -> tuple[Tensor, Tensor]:
    """``out_z``, or without z ``out``, and the last state; arguments as ``contract`` says."""
    out, states, out_z = _scanned(scan)
    return (out if out_z is None else out_z), _by_channel(states[-1])


def forward(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """``out``, ``x`` in upstream's form and ``out_z``: as ``contract.Scanned``."""
    out, states, out_z = _scanned(scan)
    # The last step of each chunk.
    seqlen = states.shape[0]
    ends = torch.arange(CHUNK, seqlen + CHUNK, CHUNK, device=states.device).clamp(max=seqlen) - 1
    sums = _step_sizes(scan).cumsum(-1).index_select(-1, ends)
    decays = torch.exp(sums.transpose(1, 2).unsqueeze(-1) * scan.A)  # batch, chunks, dim, dstate
    reached = states.index_select(0, ends).flatten(2, 3).transpose(0, 1)
    pairs = torch.stack((decays, reached), -1).flatten(-2)
    return out, pairs.transpose(1, 2), out_z


def backward(scan: Scan, dout: Tensor) -> Gradients:
    """Every gradient of the scan, itself differentiable; ``out_z`` with z, asked for or not."""

    def final(*tensors: Any) -> Tensor:
        return output(SCAN.pack(tensors, SCAN.options(scan)))[0]

    needed = [tensor is not None for tensor in SCAN.tensors(scan)]
    found: Any = twice.gradients(final, SCAN.tensors(scan), needed, (dout,))
    du, ddelta, dA, dB, dC, dD, dz, ddelta_bias = found
    out_z = None if scan.z is None else final(*SCAN.tensors(scan))
    return Gradients(du, ddelta, dA, dB, dC, dD, ddelta_bias, dz, out_z)


def _scanned(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """``out``, the states (seqlen, batch, groups, channels, dstate), and ``out_z``."""
    if is_traced():
        scan = _beside_u(scan)
    u, A, B, C, D, z = scan.u, scan.A, scan.B, scan.C, scan.D, scan.z
    (batch, dim, seqlen), dstate = u.shape, A.shape[1]
    groups = next((weight.shape[1] for weight in (B, C) if weight.dim() == 4), 1)
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


def _beside_u(scan: Scan) -> Scan:
    """The same, for a trace that has to refuse what is of other sizes than u."""
    axes: dict[str, tuple[tuple[int, int], ...]] = dict.fromkeys(("delta", "z"), ((0, 0), (2, 2)))
    for name in ("B", "C"):
        if getattr(scan, name).dim() == 4:
            axes[name] = ((0, 0),) if scan.A.is_complex() else ((0, 0), (3, 2))
    return scan._replace(
        **{name: beside(name, getattr(scan, name), scan.u, *pairs) for name, pairs in axes.items()}
    )


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
        dim, dstate = weight.shape
        return weight.reshape(groups, dim // groups, dstate)
    if A.is_complex():
        batch, groups, dstate, width = weight.shape
        pairs = weight.to(A.real.dtype).reshape(batch, groups, dstate, width // 2, 2)
        weight = torch.view_as_complex(pairs.contiguous())
    return weight.to(A.dtype).permute(3, 0, 1, 2).unsqueeze(3)


def _recurrence(decays: Tensor, inputs: Tensor, levels: int | None = None) -> Tensor:
    """``h[t] = decays[t] h[t-1] + inputs[t]`` along the first axis, from zero.

    The ends of blocks are the steps of the level above, of which the highest has one block.
    """
    steps = inputs.shape[0]
    if levels is None:
        levels = _levels(sizes(inputs)[0])
    decays, inputs = _blocks(decays, 1.0), _blocks(inputs, 0.0)
    each_decay, each_input = decays.unbind(1), inputs.unbind(1)
    states = [each_input[0]]
    for decay, driven in zip(each_decay[1:], each_input[1:]):
        states.append(decay * states[-1] + driven)
    found = torch.stack(states, 1)
    if levels == 1:
        found = fixed(found, 0)
    else:
        passed = [each_decay[0]]
        for decay in each_decay[1:]:
            passed.append(passed[-1] * decay)
        ends = _recurrence(passed[-1], states[-1], levels - 1)
        before = torch.cat((torch.zeros_like(ends[:1]), ends[:-1]))
        found = found + torch.stack(passed, 1) * before.unsqueeze(1)
    return found.flatten(0, 1)[:steps]


def _levels(steps: int) -> int:
    """How many levels so many steps have; in a trace those of the longest sequence it serves."""
    levels = TRACED_LEVELS if is_traced() else 1
    while BLOCK**levels < steps:
        levels += 1
    return levels


def _blocks(signal: Tensor, filler: float) -> Tensor:
    """(steps, ...) as (blocks, BLOCK, ...), ``filler`` being what is added at the end.

    What is shorter than a block is one, unless a trace is taken.
    """
    if not is_traced() and signal.shape[0] <= BLOCK:
        return signal.unsqueeze(0)
    padding = missing(signal.shape[0], BLOCK)
    if is_traced() or padding:
        signal = functional.pad(signal, (0, 0) * (signal.dim() - 1) + (0, padding), value=filler)
    return unflatten(signal, 0, (-1, BLOCK))
