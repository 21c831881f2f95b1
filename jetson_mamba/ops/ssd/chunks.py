"""Mamba-2's scan, in both directions, as matrix products over chunks of the sequence.

For each head, with a state ``h`` of shape (headdim, dstate) and steps ``dt``::

    h[t] = exp(dt[t] A) h[t-1] + dt[t] x[t] B[t]^T        y[t] = h[t] C[t] + D x[t]

Within a chunk that is multiplication by a masked matrix, and between chunks only ``h`` passes
(Dao and Gu, "Transformers are SSMs", 2024, section 6). The gradients follow by hand. Every
decay is ``exp`` of a difference of cumulative sums that is at most 0 for ``A <= 0``, and the
gradient of a cumulative sum is built from the terms that cross each step, never as a difference
of large totals, so neither overflow nor cancellation arises.

A *block* is the run of chunks that is worked on at once: see ``block``, whose names of the axes
are used here. The forward pass keeps the state at the start of each block and nothing else; the
backward pass goes through the blocks in reverse and computes the rest again, so the memory for
(chunk, chunk) matrices does not grow with seqlen.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.in_place import addcmul

from .block import Block, Local, blocks, operand_dtype, product, weighted
from .contract import Scan
from .gates import silu_and_slope
from .steps import finite, resets_before, slope, steps_taken


class Targets(NamedTuple):
    """Where the gradients of the long arguments are written: any strides, any dtype."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    z: Tensor | None


class Gradients(NamedTuple):
    """The gradients of the other arguments; None for what was not given."""

    A: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    initial_states: Tensor | None


def forward(scan: Scan, out: Tensor, cut: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """Write the output into ``out``; return the last state, and that before each block of ``cut``.

    The states are laid out (batch, groups, heads of a group * headdim, dstate).
    """
    steps = steps_taken(scan)
    resets = _resets(scan)
    state = _first_state(scan)
    kept = []
    for block in cut:
        kept.append(state)
        local = Local(scan, steps, resets, block)
        starts, state = local.states(state)
        read = local.read(_rounded(scan, starts))
        del starts
        target = local.view(out)
        if scan.z is None:
            local.output(read, out=target)
        else:
            y = local.output(read)
            target.copy_(y.mul_(functional.silu(local.view(scan.z).to(y.dtype))))
    return state, kept


def states(scan: Scan, cut: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """What :func:`forward` returns, without the output."""
    steps = steps_taken(scan)
    resets = _resets(scan)
    state = _first_state(scan)
    kept = []
    for block in cut:
        kept.append(state)
        _, state = Local(scan, steps, resets, block).states(state)
    return state, kept


def varlen_states(scan: Scan, ends: list[int]) -> Tensor:
    """The states at the end of each sequence ``ends[i]:ends[i + 1]``, in the dtype of C.

    The first sequence starts from the initial states, the others from zero.
    """
    steps = steps_taken(scan)
    resets = _resets(scan)
    first = _first_state(scan)
    states = []
    for index, (start, stop) in enumerate(zip(ends, ends[1:])):
        state = first if index == 0 else torch.zeros_like(first)
        for block in blocks(scan, start, stop):
            _, state = Local(scan, steps, resets, block).states(state)
        states.append(state)
    return public_state(torch.cat(states), scan).to(scan.C.dtype)


def public_state(state: Tensor, scan: Scan) -> Tensor:
    """A state as (batch, nheads, headdim, dstate); itself where nobody looks at it."""
    if not scan.last_state and state.numel() == 0:
        return state
    return state.view(state.shape[0], *scan.x.shape[2:], state.shape[3])


def backward(
    scan: Scan,
    kept: Sequence[Tensor],
    dout: Tensor,
    dfinal_states: Tensor | None,
    targets: Targets,
    cut: Sequence[Block],
    *,
    out: Tensor | None = None,
    operands: torch.dtype | None = None,
) -> Gradients:
    """The gradients of :func:`forward` in the dtype of computation, from the states that it kept.

    ``out``, where given with z, receives the output of the forward pass once more. ``operands``
    is the ``operand_dtype`` of what scan has been widened from.
    """
    groups = scan.B.shape[2]
    steps = steps_taken(scan)
    resets = _resets(scan)
    dsteps = torch.empty_like(steps)
    A = torch.unflatten(finite(scan.A.to(steps.dtype)), 0, (groups, -1))
    dA = torch.zeros_like(A)
    dD = torch.unflatten(steps.new_zeros(scan.x.shape[2:]), 0, (groups, -1))
    if dfinal_states is None:
        dstate = torch.zeros_like(_first_state(scan))
    else:
        dstate = _private_state(dfinal_states, groups, steps.dtype)

    for block, start_state in zip(reversed(cut), reversed(kept)):
        local = Local(scan, steps, resets, block)
        starts, _ = local.states(start_state, last=False)
        rounded = _rounded(scan, starts)
        dy = local.view(dout)
        if scan.z is not None and targets.z is not None:
            y = local.output(local.read(rounded))
            gate, slope_of_gate = silu_and_slope(local.view(scan.z).to(y.dtype))
            local.view(targets.z).copy_(slope_of_gate.mul_(y).mul_(dy))
            if out is not None:
                local.view(out).copy_(y.mul_(gate))
            dy = gate.mul_(dy)
        found = _block_gradients(
            local, operands or operand_dtype(scan), starts, rounded, dy, dstate
        )
        dstate = found.dstate
        D = local.channels_of_d()
        if D is None:
            addcmul(*found.dx, out=local.view(targets.x))
        else:
            addcmul(torch.addcmul(*found.dx), dy, D, out=local.view(targets.x))
        if D is None and scan.D is not None:
            dD[..., 0] += found.dD
        elif D is not None:
            dD += (dy * local.x).sum((0, 1, 2))
        dA += (found.dlog * local.dt).sum((0, 1, 4))
        ddt = torch.addcmul(found.ddt, found.dlog, A.unsqueeze(-1))
        local.view(dsteps).copy_(ddt.permute(0, 1, 4, 2, 3))
        block.of(targets.B).copy_(found.dB.transpose(2, 3))
        block.of(targets.C).copy_(found.dC.transpose(2, 3))

    dsteps *= slope(scan)
    targets.dt.copy_(dsteps)
    dD = dD.flatten(0, 1)
    return Gradients(
        A=dA.flatten(),
        D=None if scan.D is None else (dD[:, 0] if scan.D.dim() == 1 else dD),
        dt_bias=None if scan.dt_bias is None else dsteps.sum((0, 1)),
        initial_states=None if scan.initial_states is None else public_state(dstate, scan),
    )


class _BlockGradients(NamedTuple):
    """What a block adds. That of x is the first of three tensors plus the other two's product."""

    dx: tuple[Tensor, Tensor, Tensor]
    ddt: Tensor  # as a factor, (k, b, g, r, q)
    dlog: Tensor  # of dt * A, (k, b, g, r, q)
    dB: Tensor  # (k, b, g, q, n)
    dC: Tensor
    dD: Tensor  # of a D per head, (g, r)
    dstate: Tensor  # before the block


def _block_gradients(
    local: Local,
    narrow: torch.dtype,
    starts: Tensor,
    rounded: Tensor,
    dy: Tensor,
    dstate: Tensor,
) -> _BlockGradients:
    """The gradients of a block, of dy (k, b, q, g, r, p) and of the state after the block."""
    wide = local.dtype
    dinside, dCB, ddt, dlog, dD = _pair_gradients(local, narrow, dy)
    dC = product(dCB, local.B, wide)
    dB = product(dCB.transpose(-1, -2), local.C, wide)

    # Through the state before each chunk and the state after it, (k, b, g, r p, n).
    reads = local.read(rounded).mul_(dy).sum(-1).permute(0, 1, 3, 4, 2) * local.enter
    dy_read = local.per_step(dy, local.enter)
    dC += product(dy_read, rounded, wide)
    dcarried = torch.empty((len(starts) + 1, *dstate.shape), dtype=wide, device=dstate.device)
    product(dy_read.transpose(-1, -2), local.C, wide, out=dcarried[:-1])
    dcarried[-1] = dstate
    del dy_read
    dends = local.pass_on(dcarried[1:], back=True)
    dstate = torch.addcmul(dcarried[0], dends[0], local.kept(0))
    # What each chunk leaves of the state before it, (k, b, g, r, 1). The room is used again.
    through = torch.mul(starts, dends, out=dcarried[:-1]).sum(-1)
    del dcarried
    through = torch.unflatten(through, -1, (-1, dy.shape[-1])).sum(-1, keepdim=True) * local.carry

    dB += product(local.per_step(local.x, local.sending), dends, wide)
    sent = local.heads(product(local.B, dends.transpose(-1, -2), wide))
    sends = (sent * local.x).sum(-1).permute(0, 1, 3, 4, 2)
    ddt += sends * local.leave
    dx = (dinside.permute(0, 1, 4, 2, 3, 5), sent, local.along(local.sending))

    # What is read after a step, and what was sent before it, came through its decay.
    dlog = dlog + reads.double().flip(-1).cumsum(-1).flip(-1) + through
    dlog[..., 1:] += (sends * local.sending)[..., :-1].double().cumsum(-1)
    return _BlockGradients(dx, ddt, dlog.to(wide), dB, dC, dD, dstate)


def _pair_gradients(
    local: Local, narrow: torch.dtype, dy: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Through the (chunk, chunk) matrices: the gradients of x (k, b, g, r, q, p), of ``C B``
    (k, b, g, q, q), of dt and of dt * A (k, b, g, r, q), and of a D per head (g, r)."""
    wide = local.dtype
    exponents, scale = local.exponents()
    CB, matrix = local.mixing(exponents, scale, narrow)
    dy_rows = local.per_head(dy, scale, narrow)
    dinside = product(matrix.transpose(-1, -2), dy_rows, wide)
    del matrix
    pairs = product(dy_rows, local.per_head(local.x, dtype=narrow).transpose(-1, -2), wide)
    del dy_rows
    dD = (pairs.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True) / scale).sum((0, 1, 4))
    weighted(pairs, exponents, out=pairs)
    if local.signs is not None:
        pairs *= local.signs.unsqueeze(-2)
    dCB = local.masked(pairs.sum(3))
    pairs *= CB
    lengths = local.lengths()
    ddt = pairs.sum(-2) / (lengths if local.signs is None else lengths * local.signs)
    return dinside, dCB, ddt, _spanning(pairs, exponents), dD


def _spanning(pairs: Tensor, room: Tensor) -> Tensor:
    """For each step t the sum of ``pairs[i, j]`` over ``i >= t > j``; writes over ``room``."""
    size = pairs.shape[-1]
    before = torch.ones(size, size, dtype=pairs.dtype, device=pairs.device).triu_(1)
    torch.mm(pairs.view(-1, size), before, out=room.view(-1, size))
    return room.tril_().sum(-2)


def _rounded(scan: Scan, states: Tensor) -> Tensor:
    """States as they are kept between chunks."""
    if scan.state_dtype is None:
        return states
    return states.to(scan.state_dtype).to(states.dtype)


def _resets(scan: Scan) -> Tensor | None:
    return None if scan.seq_idx is None else resets_before(scan.seq_idx)


def _first_state(scan: Scan) -> Tensor:
    batch, _, nheads, headdim = scan.x.shape
    groups, dstate = scan.B.shape[2:]
    if scan.initial_states is not None:
        return _private_state(scan.initial_states, groups, scan.dtype)
    rows = nheads // groups * headdim
    return scan.x.new_zeros(batch, groups, rows, dstate, dtype=scan.dtype)


def _private_state(state: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """The reverse of :func:`public_state`."""
    return torch.unflatten(state.to(dtype).contiguous(), 1, (groups, -1)).flatten(2, 3)
