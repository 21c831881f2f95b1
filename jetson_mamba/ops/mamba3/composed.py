"""Mamba-3's scan in plain tensor operations, as products of matrices over chunks of the sequence.

For each head, with a state ``h`` (dstate, headdim), ``λ = sigmoid(trap)`` and q and k turned by
the angle that ``pi tanh(angles) dt`` sums up to::

    h[t] = a[t] (h[t-1] + dt[t] (1 - λ[t]) k[t-1] v[t-1]^T) + dt[t] λ[t] k[t] v[t]^T
    y[t] = q[t] h[t] + D v[t]                                   with  a[t] = exp(adt[t])

(Mamba-3: the trapezoidal discretisation, and complex states by rotation.) A past input enters once
by its own step and once by the next, so it weighs ``dt λ`` of its own and ``dt (1 - λ)`` of the
next; the current one by its own alone. That is one scan as Mamba-2's whose weights differ on the
diagonal. With several inputs and outputs a step (``rank``), a step is that many rows of the
matrices, among which no time passes.

A sum of logarithms of decays is made of the terms that it spans, forward and in the gradient that
autograd makes of it, so neither overflow nor cancellation arises. Angles are cumulated in float64:
many turns are added up, and a part of one decides.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .contract import Scan, States
from .layout import Layout

# Rows of the matrices of a chunk, and how many elements those have that are worked on at once.
ROWS = 64
BLOCK_ELEMENTS_CPU = 1 << 20
BLOCK_ELEMENTS = 1 << 24


class _Weights(NamedTuple):
    """What the matrices of chunks are multiplied by, (batch, chunks, nheads, ...)."""

    mixing: Tensor  # (size, size): how much of a step's input is in a step's output
    enter: Tensor  # (size,): decay from before the chunk to each step
    leave: Tensor  # (size,): how much of a step's input is in the state after the chunk


def scan(given: Scan) -> tuple[Tensor, States]:
    """The output (batch, seqlen, rank, nheads, headdim) and the last states, in ``given.dtype``."""
    dtype = given.dtype
    batch, seqlen, rank = given.q.shape[:3]
    nheads = given.v.shape[2]
    layout = Layout(seqlen, max(1, ROWS // rank), given.ends, given.v.device)
    steps = given.dt.to(dtype).transpose(1, 2)
    late = given.trap.to(dtype).transpose(1, 2)
    own = steps * torch.sigmoid(late)
    of_next = steps * torch.sigmoid(-late)
    theta, last_angle = _angles(given, layout, steps)
    weights = _weights(
        layout.of(given.adt.to(dtype).transpose(1, 2)), layout.of(own), layout.ahead(of_next)
    )
    q, k, v = (layout.of(each.to(dtype)) for each in (given.q, given.k, given.v))
    firsts = _first_states(given, layout, of_next)

    elements = BLOCK_ELEMENTS_CPU if v.device.type == "cpu" else BLOCK_ELEMENTS
    most = max(1, elements // max(1, batch * nheads * (layout.size * rank) ** 2))
    bounds = _bounds(layout.counts)
    outs, ends, last_k = [], {}, {}
    state = firsts[0]
    for start in range(0, layout.chunks, most):
        block = slice(start, min(start + most, layout.chunks))
        q_rows, k_rows = (
            _rows(_turned(given, each[:, block], bias, theta[:, block]))
            for each, bias in ((q, given.q_bias), (k, given.k_bias))
        )
        u = _up(given, v[:, block])
        mixed, added = _products(weights, block, rank, q_rows, k_rows, _rows(u))
        carry = weights.enter[:, block, :, -1, None, None]
        starts = []
        for index in range(block.start, block.stop):
            if index in bounds.first:
                state = firsts[bounds.first[index]]
            starts.append(state)
            inside = index - block.start
            state = torch.addcmul(added[:, inside], carry[:, inside], state)
            if index in bounds.last:
                number = bounds.last[index]
                ends[number] = state
                last_k[number] = k_rows[:, inside]
        entering = weights.enter[:, block].repeat_interleave(rank, -1).unsqueeze(-1)
        mixed = torch.addcmul(mixed, q_rows @ torch.stack(starts, 1), entering)
        y = torch.unflatten(mixed, 3, (layout.size, rank)).permute(0, 1, 3, 4, 2, 5)
        if given.D is not None:
            y = torch.addcmul(y, u, given.D.to(dtype).unsqueeze(-1))
        outs.append(y)
    out = layout.back(torch.cat(outs, 1))
    return out, _last_states(given, layout, last_angle, firsts, ends, last_k)


def turned(x: Tensor, theta: Tensor, halves: bool) -> Tensor:
    """The pairs of the last axis of x, turned by theta (..., angles); those without one are kept.

    The pairs are (i, i + n / 2) where ``halves``, else (2 i, 2 i + 1).
    """
    angles = theta.shape[-1]
    cos, sin = theta.cos(), theta.sin()
    if halves:
        first, second = x.chunk(2, -1)
    else:
        first, second = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    a, b = first[..., :angles], second[..., :angles]
    both = (
        torch.cat([a * cos - b * sin, first[..., angles:]], -1),
        torch.cat([a * sin + b * cos, second[..., angles:]], -1),
    )
    return torch.cat(both, -1) if halves else torch.stack(both, -1).flatten(-2)


class _Bounds(NamedTuple):
    """The numbers of the sequences that begin, and that end, with a chunk."""

    first: dict[int, int]
    last: dict[int, int]


def _bounds(counts: list[int]) -> _Bounds:
    first, last, chunk = {}, {}, 0
    for number, count in enumerate(counts):
        if count:
            first[chunk] = number
            last[chunk + count - 1] = number
        chunk += count
    return _Bounds(first, last)


def _angles(given: Scan, layout: Layout, steps: Tensor) -> tuple[Tensor, Tensor]:
    """The cumulated angles (batch, chunks, size, nheads, angles), and the last of each sequence."""
    rates = torch.tanh(given.angles.to(given.dtype)) * math.pi
    inside = layout.of(rates * steps.unsqueeze(-1)).double().cumsum(2)
    turns = 2 * math.pi
    begins, ends = [], []
    parts = inside[:, :, -1].split(layout.counts, 1)
    for number, part in enumerate(parts):
        before = part.new_zeros(part.shape[0], 1, *part.shape[2:])
        if given.initial is not None:
            before = layout.of_sequence(given.initial.angle, number).double().unsqueeze(1)
        summed = torch.cat([before, part], 1).cumsum(1)
        begins.append(summed[:, :-1])
        ends.append(summed[:, -1].remainder(turns).to(given.dtype))
    theta = (inside + torch.cat(begins, 1).unsqueeze(2)).remainder(turns)
    return theta.to(given.dtype), layout.joined(ends)


def _weights(logs: Tensor, own: Tensor, of_next: Tensor) -> _Weights:
    """From the logarithms of decays and the two weights of each step, (batch, chunks, size, h)."""
    logs, own, of_next = (each.transpose(2, 3) for each in (logs, own, of_next))
    size = logs.shape[-1]
    below = torch.ones(size, size, dtype=torch.bool, device=logs.device).tril_(-1)
    # Of steps t and s < t, the sum over those after s up to t.
    spanned = logs.unsqueeze(-1).masked_fill(~below, 0.0).cumsum(-2)
    past = (own + of_next).unsqueeze(-2)
    mixing = (spanned.exp() * past).masked_fill(~below, 0.0) + torch.diag_embed(own)
    leave = spanned[..., -1, :].exp() * past.squeeze(-2)
    return _Weights(mixing, logs.cumsum(-1).exp(), leave)


def _products(
    weights: _Weights, block: slice, rank: int, q: Tensor, k: Tensor, u: Tensor
) -> tuple[Tensor, Tensor]:
    """Of a block's chunks, the outputs of their own inputs, and what those add to the state."""
    matrix = q @ k.transpose(-1, -2)
    if rank == 1:
        matrix = matrix * weights.mixing[:, block]
    else:
        sizes = (weights.mixing.shape[-1], rank)
        apart = torch.unflatten(torch.unflatten(matrix, -1, sizes), -3, sizes)
        matrix = (apart * weights.mixing[:, block, :, :, None, :, None]).flatten(-2).flatten(-3, -2)
    leave = weights.leave[:, block].repeat_interleave(rank, -1).unsqueeze(-1)
    return matrix @ u, (k * leave).transpose(-1, -2) @ u


def _turned(given: Scan, x: Tensor, bias: Tensor, theta: Tensor) -> Tensor:
    """q or k of a block by heads, with its bias and turned: (b, chunks, size, rank, h, dstate)."""
    heads = x.repeat_interleave(given.v.shape[2] // x.shape[-2], -2)
    return turned(heads + bias.to(x.dtype).transpose(0, 1), theta.unsqueeze(3), given.halves)


def _up(given: Scan, v: Tensor) -> Tensor:
    """v (..., nheads, headdim) as the inputs of each step, (..., rank, nheads, headdim)."""
    u = v.unsqueeze(-3)
    return u if given.v_proj is None else u * given.v_proj.to(v.dtype).transpose(0, 1)


def _rows(x: Tensor) -> Tensor:
    """(b, chunks, size, rank, h, ...) as the rows of matrices, (b, chunks, h, size * rank, ...)."""
    return x.permute(0, 1, 4, 2, 3, 5).flatten(3, 4)


def _first_states(given: Scan, layout: Layout, of_next: Tensor) -> list[Tensor]:
    """The state (batch, nheads, dstate, headdim) before each sequence.

    In it is what the input before the first step has in that step.
    """
    batch, nheads, headdim = given.v.shape[0], *given.v.shape[2:]
    if given.initial is None:
        zeros = of_next.new_zeros(batch, nheads, given.q.shape[-1], headdim)
        return [zeros] * len(layout.counts)
    found = []
    for number, count in enumerate(layout.counts):
        ssm, k, v = (layout.of_sequence(each, number).to(given.dtype) for each in given.initial[1:])
        state = ssm.transpose(-1, -2)
        if count:
            first = 0 if given.ends is None else given.ends[number]
            inputs = _up(given, v) * of_next[:, first, None, :, None]
            state = state + torch.einsum("brhn,brhp->bhnp", k, inputs)
        found.append(state)
    return found


def _last_states(
    given: Scan,
    layout: Layout,
    angle: Tensor,
    firsts: list[Tensor],
    ends: dict[int, Tensor],
    last_k: dict[int, Tensor],
) -> States:
    rank, initial = given.q.shape[2], given.initial
    ssm, k = [], []
    for number, count in enumerate(layout.counts):
        ssm.append(ends.get(number, firsts[number]).transpose(-1, -2))
        if count:
            length = given.q.shape[1]
            if given.ends is not None:
                length = given.ends[number + 1] - given.ends[number]
            step = (length - 1) % layout.size
            k.append(last_k[number][:, :, step * rank : (step + 1) * rank].transpose(1, 2))
        elif initial is not None:
            k.append(layout.of_sequence(initial.k, number).to(given.dtype))
        else:
            k.append(firsts[number].new_zeros(1, rank, given.v.shape[2], given.k.shape[-1]))
    before = None if initial is None else initial.v
    return States(angle, layout.joined(ssm), layout.joined(k), layout.last(given.v, before))
