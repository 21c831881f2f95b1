"""The selective scan in plain PyTorch, in both directions, on any device.

The recurrence (Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces",
section 3.2) for one channel, its states as vectors:

    h[t] = exp(delta[t] A) h[t-1] + delta[t] u[t] B[t]        y[t] = C[t] . h[t] + D u[t]

(twice the real part of C[t] . h[t] where A is complex), and out_z[t] = y[t] silu(z[t]). With g[t]
the gradient of h[t], which runs backward in time,

    g[t] = dy[t] C[t]* + exp(delta[t+1] A)* g[t+1]            (* is the complex conjugate)

every other gradient is a sum over products of g, h and the decays, so none needs a graph.

How it is laid out decides the speed. Time comes first and the channels last, (steps, batch,
groups, dstate, channels), so that every operation runs along contiguous channels and one step
is one fused multiply-add on a contiguous slice. What is not sequential (decays, outer products,
reductions) is done for a block of steps at once, of a size that stays in the cache. No decay is
ever divided by or multiplied up ahead of its state: any A and delta are as exact as the plain
loop. Backward recomputes the states of a block from its first one; those first states come from
a sweep over the chunk, whose own first state the forward pass kept.
"""

from __future__ import annotations

from functools import partial
from typing import Iterator, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import silu, softplus

from jetson_mamba.dispatch import workers

from .contract import (
    CHUNK,
    Case,
    Gradients,
    Implementation,
    Returning,
    Scan,
    Scanned,
    upstream_rows,
)
from .parts import PartOfScan, Shared, parts_of, summed
from .recurrence import multiply_and_add_in_order

# States of a block of steps: 2 MB in float32, about a core's share of a cache.
BLOCK_STATES = 2**19
# Fewer steps than this would keep more first states than a block has states.
MIN_BLOCK_STEPS = 16
SOFTPLUS_THRESHOLD = 20.0


def load(case: Case) -> Implementation:
    """PyTorch serves every case."""
    return IMPLEMENTATION


@torch.no_grad()
def forward(scan: Scan) -> Scanned:
    """Scan from zero states."""
    batch, dim, _ = scan.u.shape
    x = scan.A.new_empty(batch, dim, scan.chunks, 2 * scan.A.shape[1])
    out_z = torch.empty_like(scan.z) if scan.z is not None else None
    results = Scanned(torch.empty_like(scan.delta), x, out_z)
    threads = workers.threads_for(scan.u.numel() * scan.A.shape[1]) if scan.u.is_cpu else 1
    if threads == 1:
        _forward(scan, results)
    else:
        parts = parts_of(scan, threads)
        workers.run(
            [partial(_forward, part.scan(scan), part.scanned(results)) for part in parts], threads
        )
    return results


def _forward(scan: Scan, results: Scanned) -> None:
    """Scan into the results."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    out, x, out_z = results
    batch, dim, seqlen = u.shape
    dstate = A.shape[1]
    groups = scan.groups
    real = A.real.dtype if A.is_complex() else A.dtype
    decay_rates = _per_channel(A, groups)

    state = A.new_zeros(batch, groups, dstate, dim // groups)
    elapsed = A.new_zeros(batch, groups, 1, dim // groups, dtype=real)
    length = _block_steps(state, seqlen)
    decays = A.new_empty(length, *state.shape)
    states = A.new_empty(length + 1, *state.shape)

    with torch.autocast(u.device.type, enabled=False):
        for index, chunk in enumerate(_pieces(seqlen, CHUNK)):
            steps = chunk.stop - chunk.start
            signal = _by_step(u, chunk, groups, real)
            step = _step_sizes(_by_step(delta, chunk, groups, real), delta_bias, delta_softplus)
            driven = step * signal
            inputs = _weights_by_step(B, chunk, batch, groups, A.dtype)
            outputs = _weights_by_step(C, chunk, batch, groups, A.dtype)
            y = torch.empty_like(signal)
            for block in _pieces(steps, length):
                n = block.stop - block.start
                _scan(
                    step[block],
                    driven[block],
                    decay_rates,
                    inputs[block],
                    state,
                    decays[:n],
                    states[: n + 1],
                )
                read = _over_states(outputs[block], states[1 : n + 1], C.dim() == 4, decays[:n])
                y[block] = 2 * read.real if A.is_complex() else read
                state = states[n].clone()
            if D is not None:
                y.addcmul_(signal, _per_channel_vector(D, groups))
            out[:, :, chunk] = _by_channel(y)
            if z is not None and out_z is not None:
                out_z[:, :, chunk] = _by_channel(y.mul_(silu(_by_step(z, chunk, groups, real))))
            elapsed += step.sum(0)
            x[:, :, index, 0::2] = _states_by_channel(torch.exp(elapsed * decay_rates))
            x[:, :, index, 1::2] = _states_by_channel(state)


def output(scan: Scan) -> Tensor:
    """The result of :func:`forward` alone."""
    return forward(scan).output


@torch.no_grad()
def backward(scan: Scan, returning: Returning) -> Gradients:
    """Every gradient of the scan."""
    dout, x, out, dz, recompute_out_z = returning
    if scan.chunks > 1 and (x is None or x.shape[2] != scan.chunks):
        x = forward(scan._replace(D=None, z=None)).x
    if scan.z is not None and dz is None:
        dz = torch.empty_like(scan.z)
    out_z = torch.empty_like(scan.z) if scan.z is not None and recompute_out_z else None
    du, ddelta = torch.empty_like(scan.u), torch.empty_like(scan.delta)

    returning, targets = Returning(dout, x, out, dz, recompute_out_z), _Signals(du, ddelta, out_z)
    threads = workers.threads_for(scan.u.numel() * scan.A.shape[1]) if scan.u.is_cpu else 1
    if threads == 1:
        dA, dB, dC, dD, ddelta_bias = _backward(scan, returning, targets)
    else:
        parts = parts_of(scan, threads)
        calls = [
            partial(_backward, part.scan(scan), part.returning(returning), targets.of(part))
            for part in parts
        ]
        dA, dB, dC, dD, ddelta_bias = summed(scan, parts, workers.run(calls, threads))
    dB, dC = dB.to(scan.B.dtype), dC.to(scan.C.dtype)
    return Gradients(du, ddelta, dA, dB, dC, dD, ddelta_bias, dz, out_z)


class _Signals(NamedTuple):
    """Where the gradients of the signals are written; that of z has its place in ``Returning``."""

    du: Tensor
    ddelta: Tensor
    out_z: Tensor | None

    def of(self, part: PartOfScan) -> _Signals:
        """What a part writes."""
        return _Signals(part.signal(self.du), part.signal(self.ddelta), part.signal(self.out_z))


def _backward(scan: Scan, returning: Returning, targets: _Signals) -> Shared:
    """Write the gradients of the signals, and return the others'."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    dout, x, out, dz, _ = returning
    du, ddelta, out_z = targets
    batch, dim, seqlen = u.shape
    dstate = A.shape[1]
    groups = scan.groups
    real = A.real.dtype if A.is_complex() else A.dtype
    decay_rates = _per_channel(A, groups)
    # Twice the real part is taken of a complex output.
    gain = 2 if A.is_complex() else 1

    dA = torch.zeros_like(decay_rates)
    dB = _Gathered(B, real)
    dC = _Gathered(C, real)
    dD = torch.zeros_like(D) if D is not None else None
    ddelta_bias = torch.zeros_like(delta_bias) if delta_bias is not None else None

    first = A.new_zeros(batch, groups, dstate, dim // groups)
    length = _block_steps(first, seqlen)
    decays = A.new_empty(length, *first.shape)
    states = A.new_empty(length + 1, *first.shape)
    adjoints = A.new_empty(length, *first.shape)
    carry = torch.zeros_like(first)

    with torch.autocast(u.device.type, enabled=False):
        chunks = list(_pieces(seqlen, CHUNK))
        for index in reversed(range(len(chunks))):
            chunk = chunks[index]
            signal = _by_step(u, chunk, groups, real)
            biased = _by_step(delta, chunk, groups, real)
            step = _step_sizes(biased, delta_bias, delta_softplus)
            driven = step * signal
            inputs = _weights_by_step(B, chunk, batch, groups, A.dtype)
            outputs = _weights_by_step(C, chunk, batch, groups, A.dtype)
            dy = _by_step(dout, chunk, groups, real)
            if z is not None and out is not None and dz is not None:
                gate = _by_step(z, chunk, groups, real)
                y = _by_step(out, chunk, groups, real)
                sigmoid = torch.sigmoid(gate)
                opened = gate * sigmoid
                if out_z is not None:
                    out_z[:, :, chunk] = _by_channel(y * opened)
                slope = sigmoid.mul_(1 + gate - opened)
                dz[:, :, chunk] = _by_channel(y.mul_(dy).mul_(slope))
                dy.mul_(opened)

            # The first state of every block of the chunk.
            blocks = list(_pieces(chunk.stop - chunk.start, length))
            if index > 0 and x is not None:
                firsts = [_states_by_group(x[:, :, index - 1, 1::2], groups)]
            else:
                firsts = [torch.zeros_like(first)]
            for block in blocks[:-1]:
                _scan(
                    step[block],
                    driven[block],
                    decay_rates,
                    inputs[block],
                    firsts[-1],
                    decays,
                    states,
                )
                firsts.append(states[-1].clone())

            dstep = torch.empty_like(step)
            ddriven = torch.empty_like(driven)
            dread = dy.to(A.dtype) * gain
            for block in reversed(blocks):
                n = block.stop - block.start
                a, h, g = decays[:n], states[: n + 1], adjoints[:n]
                _scan(
                    step[block],
                    driven[block],
                    decay_rates,
                    inputs[block],
                    firsts.pop(),
                    a,
                    h,
                )
                if A.is_complex():
                    a.conj_physical_()
                    h.conj_physical_()
                dC.add(chunk, block, h[1:], dread[block], scratch=g)
                # Not conj(): where this runs as an operator of a graph, out= overlooks that a view
                # is conjugated lazily (torch 2.13).
                torch.mul(dread[block], outputs[block].conj_physical(), out=g)
                carry = _scan_back(a, g, carry)
                # The gradient of delta A at each step: conj(exp(delta A) h[t-1]) g[t].
                a.mul_(h[:-1]).mul_(g)
                scratch = h[1:]
                dB.add(chunk, block, g, driven[block].to(A.dtype), scratch)
                inward = _over_states(inputs[block].conj_physical(), g, B.dim() == 4, scratch)
                onward = _over_states(decay_rates.conj_physical(), a, False, scratch)
                ddriven[block] = inward.real if A.is_complex() else inward
                dstep[block] = onward.real if A.is_complex() else onward
                dA += torch.mul(a, step[block], out=scratch).sum((0, 1))

            if dD is not None:
                dD += (dy * signal).sum((0, 1)).reshape(dim)
            dstep.addcmul_(ddriven, signal)
            if delta_softplus:
                # `biased` holds delta with its bias: `_step_sizes` adds that in place.
                dstep.mul_(torch.sigmoid(biased).masked_fill_(biased > SOFTPLUS_THRESHOLD, 1))
            if ddelta_bias is not None:
                ddelta_bias += dstep.sum((0, 1)).reshape(dim)
            ddelta[:, :, chunk] = _by_channel(dstep)
            ddriven.mul_(step)
            if D is not None:
                ddriven.addcmul_(dy, _per_channel_vector(D, groups))
            du[:, :, chunk] = _by_channel(ddriven)
    return Shared(_states_by_channel(dA[None])[0], dB.gradient, dC.gradient, dD, ddelta_bias)


IMPLEMENTATION = Implementation(forward, backward, output, upstream_rows)


def _scan(
    step: Tensor,
    driven: Tensor,
    decay_rates: Tensor,
    inputs: Tensor,
    first: Tensor,
    decays: Tensor,
    states: Tensor,
) -> None:
    """Fill ``decays`` and ``states`` of a block; ``states[0]`` is the state before it."""
    torch.mul(step, decay_rates, out=decays).exp_()
    states[0] = first
    torch.mul(driven, inputs, out=states[1:])
    each = states.unbind(0)
    multiply_and_add_in_order(each[1:], decays.unbind(0), each[:-1])


def _scan_back(decays: Tensor, adjoints: Tensor, carry: Tensor) -> Tensor:
    """Turn ``adjoints``, what each step's output sends back, into each state's gradient.

    ``decays`` are conjugated. ``carry`` is what the step after the block sends back; returned is
    what the block sends to the step before it.
    """
    adjoints[-1] += carry
    each = adjoints.unbind(0)[::-1]
    multiply_and_add_in_order(each[1:], decays.unbind(0)[:0:-1], each[:-1])
    return decays[0] * adjoints[0]


def _over_states(weights: Tensor, states: Tensor, variable: bool, scratch: Tensor) -> Tensor:
    """``sum_n weights[n] states[n]`` for each step and channel: (steps, batch, groups, 1, ch)."""
    if variable:
        return torch.matmul(weights.transpose(-1, -2), states)
    return torch.mul(states, weights, out=scratch).sum(-2, keepdim=True)


class _Gathered:
    """The gradient of B or C, gathered block by block."""

    def __init__(self, weight: Tensor, real: torch.dtype) -> None:
        self.variable = weight.dim() == 4
        # A variable weight belongs to one step, so its gradient is written once, in one block; not
        # in its own dtype, as other parts may have to be added.
        self.gradient = (
            torch.empty_like(weight, dtype=real) if self.variable else torch.zeros_like(weight)
        )

    def add(
        self, chunk: slice, block: slice, states: Tensor, signal: Tensor, scratch: Tensor
    ) -> None:
        """Add ``states signal`` of a block, summed over all that shares the weight."""
        if not self.variable:
            summed = torch.mul(states, signal, out=scratch).sum((0, 1))
            self.gradient += _states_by_channel(summed[None])[0]
            return
        summed = torch.matmul(states, signal.transpose(-1, -2)).squeeze(-1).permute(1, 2, 3, 0)
        start, stop = chunk.start + block.start, chunk.start + block.stop
        if summed.is_complex():
            self.gradient[..., 2 * start : 2 * stop] = torch.view_as_real(summed).flatten(-2)
        else:
            self.gradient[..., start:stop] = summed


def _pieces(total: int, length: int) -> Iterator[slice]:
    for start in range(0, total, length):
        yield slice(start, min(start + length, total))


def _block_steps(state: Tensor, seqlen: int) -> int:
    wanted = max(MIN_BLOCK_STEPS, BLOCK_STATES // max(1, state.numel()))
    return min(wanted, CHUNK, seqlen)


def _per_channel(weight: Tensor, groups: int) -> Tensor:
    """(dim, dstate) as (groups, dstate, channels)."""
    return weight.reshape(groups, -1, weight.shape[1]).transpose(-1, -2).contiguous()


def _per_channel_vector(vector: Tensor, groups: int) -> Tensor:
    """(dim,) as (groups, 1, channels)."""
    return vector.reshape(groups, 1, -1)


def _by_step(signal: Tensor, piece: slice, groups: int, dtype: torch.dtype) -> Tensor:
    """A piece of (batch, dim, seqlen) as a copy (steps, batch, groups, 1, channels)."""
    part = signal[:, :, piece].permute(2, 0, 1)
    copy = torch.empty(part.shape, dtype=dtype, device=part.device).copy_(part)
    return copy.view(*copy.shape[:2], groups, 1, copy.shape[2] // groups)


def _by_channel(steps: Tensor) -> Tensor:
    """(steps, batch, groups, 1, channels) as a view (batch, dim, steps)."""
    return steps.flatten(2).permute(1, 2, 0)


def _states_by_channel(state: Tensor) -> Tensor:
    """(batch, groups, dstate, channels) as (batch, dim, dstate)."""
    return state.transpose(-1, -2).flatten(1, 2)


def _states_by_group(state: Tensor, groups: int) -> Tensor:
    """(batch, dim, dstate) as (batch, groups, dstate, channels)."""
    batch, dim, dstate = state.shape
    return state.reshape(batch, groups, dim // groups, dstate).transpose(-1, -2)


def _weights_by_step(
    weight: Tensor, piece: slice, batch: int, groups: int, dtype: torch.dtype
) -> Tensor:
    """A piece of B or C as (steps, batch, groups, dstate, channels).

    There is one column where the weight is variable, and one for each channel, the same at
    every step, where it is constant.
    """
    if weight.dim() == 2:
        steps = piece.stop - piece.start
        return _per_channel(weight, groups).expand(steps, batch, -1, -1, -1)
    if not dtype.is_complex:
        part = weight[..., piece].to(dtype)
    else:
        pairs = weight[..., 2 * piece.start : 2 * piece.stop]
        real = torch.float64 if dtype == torch.complex128 else torch.float32
        part = torch.complex(pairs[..., 0::2].to(real), pairs[..., 1::2].to(real))
    return part.permute(3, 0, 1, 2).unsqueeze(-1).contiguous()


def _step_sizes(biased: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> Tensor:
    """The step sizes from delta by step, to which the bias is added in place."""
    if delta_bias is not None:
        biased += _per_channel_vector(delta_bias, biased.shape[2])
    return softplus(biased, threshold=SOFTPLUS_THRESHOLD) if delta_softplus else biased
