"""The selective scan as operations of a graph in which no size of the input is fixed.

An exported program that is decomposed holds these in place of the operators: see
``dispatch/operators.py``. As in ``composed``, ``h[t] = a[t] h[t-1] + v[t]`` is unrolled over
blocks of steps, all blocks side by side, and what the blocks hand on is the same recurrence over
fewer steps. How often is said when the graph is made, by the longest sequence that it is made for;
where that is not known, a matrix of the decays between them stands at the end. There is no loop,
no decay is divided by, and no sum of decays is taken from another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .composed import SOFTPLUS_THRESHOLD
from .contract import Scan

# More steps make more nodes, fewer make more levels, each of which reads and writes all states.
BLOCK = 8
# How often blocks are made of blocks where the length is open: a matrix has an entry for each pair
# of BLOCK ** LEVELS steps.
LEVELS = 3


def scanned(scan: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """``out``, the last state (batch, dim, dstate), and ``out_z``; A is real."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    (batch, dim, seqlen), dstate = u.shape, A.shape[1]
    groups = next((weight.shape[1] for weight in (B, C) if weight.dim() == 4), 1)
    heads = dim // groups
    steps = delta.to(A.dtype)
    if delta_bias is not None:
        steps = steps + delta_bias.unsqueeze(-1)
    if delta_softplus:
        steps = functional.softplus(steps, threshold=SOFTPLUS_THRESHOLD)
    signal = u.to(A.dtype)
    by_group = (seqlen, batch, groups, heads, 1)
    decays = torch.exp(steps.permute(2, 0, 1).unsqueeze(-1) * A)
    driven = (steps * signal).permute(2, 0, 1).reshape(by_group) * _by_step(B, groups, A)
    states, last = recurrence(decays.reshape(seqlen, -1), driven.reshape(seqlen, -1))
    states = states.reshape(seqlen, batch, groups, heads, dstate)
    y = (states * _by_step(C, groups, A)).sum(-1).reshape(seqlen, batch, dim).permute(1, 2, 0)
    if D is not None:
        y = y + signal * D.unsqueeze(-1)
    out_z = None if z is None else (y * functional.silu(z.to(A.dtype))).to(u.dtype)
    return y.to(u.dtype), last.reshape(batch, dim, dstate), out_z


def _by_step(weight: Tensor, groups: int, A: Tensor) -> Tensor:
    """B or C, to broadcast with (seqlen, batch, groups, channels, dstate)."""
    if weight.dim() == 2:
        return weight.reshape(groups, -1, weight.shape[1])
    return weight.to(A.dtype).permute(3, 0, 1, 2).unsqueeze(3)


def recurrence(decays: Tensor, inputs: Tensor, levels: int = LEVELS) -> tuple[Tensor, Tensor]:
    """``h[t] = decays[t] h[t-1] + inputs[t]`` of (steps, channels), and the last ``h``."""
    steps, channels = inputs.shape
    if _at_most(steps, BLOCK):
        padding = (0, 0, 0, BLOCK - steps)
        decays = functional.pad(decays, padding, value=1.0)
        inner, _ = _unrolled(decays.unbind(), functional.pad(inputs, padding).unbind())
        return torch.stack(inner)[:steps], inner[-1]
    if levels == 0:
        states = _by_matrix(decays, inputs)
        return states, states[-1]
    # One more than there must be, so that there are two: where a size may be 1, and where it is,
    # torch would make another graph.
    spare = 0 if isinstance(steps, int) else BLOCK
    count = (steps + spare + BLOCK - 1) // BLOCK
    # Steps that keep the state.
    padding = (0, 0, 0, count * BLOCK - steps)
    by_block = (count, BLOCK, channels)
    decay_of = functional.pad(decays, padding, value=1.0).reshape(by_block).unbind(1)
    input_of = functional.pad(inputs, padding).reshape(by_block).unbind(1)
    inner, passed = _unrolled(decay_of, input_of)
    ends, last = recurrence(passed[-1], inner[-1], levels - 1)
    before = functional.pad(ends, (0, 0, 1, 0))[:count].unsqueeze(1)
    states = torch.stack(inner, 1) + torch.stack(passed, 1) * before
    return states.reshape(count * BLOCK, channels)[:steps], last


def _unrolled(decays: Any, inputs: Any) -> tuple[list[Tensor], list[Tensor]]:
    """The states after each step from zero, and the products of the decays up to it."""
    states, passed = [inputs[0]], [decays[0]]
    for decay, driven in zip(decays[1:], inputs[1:]):
        states.append(decay * states[-1] + driven)
        passed.append(decay * passed[-1])
    return states, passed


def _at_most(size: Any, bound: int) -> bool:
    """Whether a size is within a bound, whatever it will be."""
    if isinstance(size, int):
        return size <= bound
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    return bool(statically_known_true(size <= bound))


def _by_matrix(decays: Tensor, inputs: Tensor) -> Tensor:
    """The recurrence by the decays from each step to each later one, all of them at once."""
    places = torch.arange(inputs.shape[0], device=inputs.device)
    later = (places.unsqueeze(1) > places).to(decays.dtype).unsqueeze(-1)
    visible = (places.unsqueeze(1) >= places).to(decays.dtype).unsqueeze(-1)
    # What decays to less than the least number is as good as gone.
    logs = decays.clamp(min=torch.finfo(decays.dtype).tiny).log()
    reached = (later * logs.unsqueeze(1)).cumsum(0).exp() * visible
    return (reached * inputs).sum(1)
