"""Mamba-2's scan, forward and backward, as matrix products over chunks of the sequence.

For each head, with a state ``h`` of shape (dstate, headdim) and steps ``dt``::

    h[t] = exp(dt[t] A) h[t-1] + dt[t] B[t] x[t]^T        y[t] = C[t] h[t] + D x[t]

Within a chunk that is multiplication by a masked matrix, and between chunks only ``h`` passes
(Dao and Gu, "Transformers are SSMs", 2024, section 6). The gradients follow by hand. Every
decay is ``exp`` of a difference of cumulative sums that is at most 0 for ``A <= 0``, and the
gradient of a cumulative sum is built from the terms that cross each step, never as a difference
of large totals, so neither overflow nor cancellation arises.

A *block* is the run of chunks that is worked on at once. The forward pass keeps the state at the
start of each block and nothing else; the backward pass goes through the blocks in reverse and
computes the rest again, so the memory for (chunk, chunk) matrices does not grow with seqlen.

Axes are named b (batch), k (chunks of a block), q (steps of a chunk), g (groups), r (heads of a
group), p (headdim), n (dstate). A state is laid out (b, g, n, r p), so that the heads of a group
share one matrix product.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from .contract import Scan
from .gates import silu_and_slope

# Measured on a CPU with 24 heads of 64 channels, dstate 128: 128 and 256 cost more elementwise
# work per step, 32 makes the products too small.
CHUNK = 64

# Elements of the (chunk, chunk) matrices of one block: within a CPU's caches (measured as above),
# elsewhere enough to fill a GPU and to make the launches few.
BLOCK_ELEMENTS_CPU = 1 << 20
BLOCK_ELEMENTS = 1 << 24

# The A that stands for an infinite one in float64.
LARGE = -1e200


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


class Block(NamedTuple):
    """``nchunks`` chunks of ``chunk`` steps each, from step ``start`` on."""

    start: int
    nchunks: int
    chunk: int

    def of(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, ...), as a view (batch, nchunks, chunk, ...)."""
        stop = self.start + self.nchunks * self.chunk
        return torch.unflatten(tensor[:, self.start : stop], 1, (self.nchunks, self.chunk))


def forward(scan: Scan, out: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Write the output into ``out``; return the last state and the one before each block.

    The states are laid out (batch, groups, dstate, heads of a group * headdim).
    """
    steps = steps_taken(scan)
    resets = _resets(scan)
    state = _first_state(scan)
    kept = []
    for block in _blocks(scan, 0, scan.x.shape[1]):
        kept.append(state)
        local = _Local(scan, steps, resets, block)
        starts, state = local.states(state)
        y = local.output(local.mixing().matrix(), _rounded(scan, starts))
        local.write(out, y if scan.z is None else y * functional.silu(local.heads(scan.z)))
    return state, kept


def states(scan: Scan) -> list[Tensor]:
    """The states that :func:`forward` keeps: the one before each block."""
    steps = steps_taken(scan)
    resets = _resets(scan)
    state = _first_state(scan)
    kept = []
    for block in _blocks(scan, 0, scan.x.shape[1]):
        kept.append(state)
        _, state = _Local(scan, steps, resets, block).states(state)
    return kept


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
        for block in _blocks(scan, start, stop):
            _, state = _Local(scan, steps, resets, block).states(state)
        states.append(state)
    return public_state(torch.cat(states), scan).to(scan.C.dtype)


def public_state(state: Tensor, scan: Scan) -> Tensor:
    """A state as (batch, nheads, headdim, dstate)."""
    headdim = scan.x.shape[3]
    return (
        torch.unflatten(state, -1, (-1, headdim)).permute(0, 1, 3, 4, 2).flatten(1, 2).contiguous()
    )


def backward(
    scan: Scan,
    kept: Sequence[Tensor],
    dout: Tensor,
    dfinal_states: Tensor | None,
    targets: Targets,
    *,
    out: Tensor | None = None,
) -> Gradients:
    """The gradients of :func:`forward`, from the states that it kept.

    ``out``, where given with z, receives the output of the forward pass once more.
    """
    groups = scan.B.shape[2]
    steps = steps_taken(scan)
    resets = _resets(scan)
    dsteps = torch.empty_like(steps)
    A = torch.unflatten(finite(scan.A.to(steps.dtype)), 0, (groups, 1, -1))
    dA = torch.zeros_like(A[:, 0])
    dD = torch.unflatten(steps.new_zeros(scan.x.shape[2:]), 0, (groups, -1))
    if dfinal_states is None:
        dstate = torch.zeros_like(_first_state(scan))
    else:
        dstate = _private_state(dfinal_states, groups, steps.dtype)

    for block, start_state in zip(reversed(_blocks(scan, 0, scan.x.shape[1])), reversed(kept)):
        local = _Local(scan, steps, resets, block)
        starts, _ = local.states(start_state, last=False)
        rounded = _rounded(scan, starts)
        mixing = local.mixing()
        matrix = mixing.matrix()
        dy = local.heads(dout)
        if scan.z is not None and targets.z is not None:
            y = local.output(matrix, rounded)
            gate, slope_of_gate = silu_and_slope(local.heads(scan.z))
            local.write(targets.z, dy * y * slope_of_gate)
            dy = dy * gate
            if out is not None:
                local.write(out, y * gate)

        # Through the state before each chunk and the state after it, (b, k, g, n, r p).
        dy_read = dy * local.enter.unsqueeze(-1)
        dends, dstate, dcarry = local.state_gradients(dy_read, starts, dstate)
        read = torch.unflatten(local.C @ rounded, -1, dy.shape[-2:])
        sent = torch.unflatten(local.B @ dends, -1, dy.shape[-2:])

        # Through the (chunk, chunk) matrices, (b, k, g, r, q, q).
        dy_rows = dy.transpose(3, 4)
        du = (matrix.transpose(-1, -2) @ dy_rows).transpose(3, 4)
        du = torch.addcmul(du, sent, local.leave.unsqueeze(-1))
        dmatrix = dy_rows @ local.u.permute(0, 1, 2, 4, 5, 3)
        dmatrix *= mixing.decay
        dCB = dmatrix.sum(3)
        dmatrix *= mixing.CB

        # To (dt A)[t] every product whose decay spans step t adds itself, once.
        dlog = _spanning(dmatrix).transpose(-1, -2)
        dlog = dlog + (dy_read * read).sum(-1).flip(3).cumsum(3).flip(3)
        dlog[:, :, :, 1:] += (local.left * sent).sum(-1)[:, :, :, :-1].cumsum(3)
        dlog += dcarry

        dA += (dlog * local.dt).sum((0, 1, 3))
        dD += (dy * local.x).sum((0, 1, 3))
        local.write(dsteps, dlog * A + (du * local.x).sum(-1))
        dx = du * local.dt.unsqueeze(-1)
        if local.D is not None:
            dx = torch.addcmul(dx, dy, local.D)
        local.write(targets.x, dx)
        dB = dCB.transpose(-1, -2) @ local.C
        dB += local.left.flatten(4) @ dends.transpose(-1, -2)
        block.of(targets.B).copy_(dB.transpose(2, 3))
        dC = dCB @ local.B
        dC += dy_read.flatten(4) @ rounded.transpose(-1, -2)
        block.of(targets.C).copy_(dC.transpose(2, 3))

    dsteps *= _slope(scan)
    targets.dt.copy_(dsteps)
    dD = dD.flatten(0, 1)
    return Gradients(
        A=dA.flatten().to(scan.A.dtype),
        D=None if scan.D is None else (dD.sum(1) if scan.D.dim() == 1 else dD).to(scan.D.dtype),
        dt_bias=None if scan.dt_bias is None else dsteps.sum((0, 1)).to(scan.dt_bias.dtype),
        initial_states=None
        if scan.initial_states is None
        else public_state(dstate, scan).to(scan.initial_states.dtype),
    )


class _Mixing(NamedTuple):
    """How the steps of a chunk mix: ``C[i] B[j]`` (b, k, g, 1, q, q), and the decay j to i."""

    CB: Tensor
    decay: Tensor

    def matrix(self) -> Tensor:
        return self.CB * self.decay


class _Local:
    """One block in the dtype of computation, with the decays that it needs."""

    def __init__(self, scan: Scan, steps: Tensor, resets: Tensor | None, block: Block) -> None:
        self._block = block
        self._groups = scan.B.shape[2]
        self._dtype = steps.dtype
        self.x = self.heads(scan.x)
        self.B = block.of(scan.B).to(steps.dtype).transpose(2, 3)
        self.C = block.of(scan.C).to(steps.dtype).transpose(2, 3)
        self.D: Tensor | None = None
        if scan.D is not None:
            D = torch.unflatten(scan.D.to(steps.dtype), 0, (self._groups, 1, -1))
            self.D = D.unsqueeze(-1) if scan.D.dim() == 1 else D
        self.dt = self.heads(steps)
        self.u = self.x * self.dt.unsqueeze(-1)

        # Decay from the start of the chunk through each step, and from after each step to the
        # end, (b, k, g, q, r); across the whole chunk, (b, k, g, 1, r).
        # The sums grow over a chunk while their differences decide: float64 keeps those exact.
        A = torch.unflatten(finite(scan.A.double()), 0, (self._groups, 1, -1))
        self._log = (self.dt * A).cumsum(3)
        last = self._log[:, :, :, -1:]
        self.enter = self._log.to(steps.dtype).exp()
        self.leave = (last - self._log).to(steps.dtype).exp()
        self._carry = last.to(steps.dtype).exp()
        self._connected: Tensor | None = None
        if resets is not None:
            count = block.of(resets).unsqueeze(2)  # b k 1 q
            stop = block.start + block.nchunks * block.chunk
            before = functional.pad(resets, (1, 0))[:, block.start : stop : block.chunk, None, None]
            self._connected = count.unsqueeze(-1) == count.unsqueeze(-2)
            self.enter *= (count == before).unsqueeze(-1)
            self.leave *= (count == count[..., -1:]).unsqueeze(-1)
            self._carry *= (count[..., -1:] == before).unsqueeze(-1)
        self.left = self.u * self.leave.unsqueeze(-1)

    def heads(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, nheads, ...) as (b, k, g, q, r, ...), to compute with."""
        block = self._block.of(tensor).to(self._dtype)
        return torch.unflatten(block, 3, (self._groups, -1)).transpose(2, 3)

    def write(self, whole: Tensor, values: Tensor) -> None:
        """Write values as :meth:`heads` gives them into this block of ``whole``."""
        block = torch.unflatten(self._block.of(whole), 3, (self._groups, -1))
        block.copy_(values.transpose(2, 3))

    def mixing(self) -> _Mixing:
        rows = self._log.transpose(3, 4)
        size = rows.shape[-1]
        visible = torch.ones(size, size, dtype=torch.bool, device=rows.device).tril_()
        if self._connected is not None:
            visible = (visible & self._connected).unsqueeze(3)
        # The upper half is masked before exp: there the difference is positive.
        log = (rows.unsqueeze(-1) - rows.unsqueeze(-2)).to(self._dtype)
        decay = log.masked_fill_(~visible, -math.inf).exp_()
        return _Mixing((self.C @ self.B.transpose(-1, -2)).unsqueeze(3), decay)

    def output(self, matrix: Tensor, starts: Tensor) -> Tensor:
        """``y`` before the gate, (b, k, g, q, r, p)."""
        inside = (matrix @ self.u.transpose(3, 4)).transpose(3, 4)
        read = torch.unflatten(self.C @ starts, -1, self.x.shape[-2:])
        y = torch.addcmul(inside, read, self.enter.unsqueeze(-1))
        return y if self.D is None else torch.addcmul(y, self.x, self.D)

    def states(self, state: Tensor, last: bool = True) -> tuple[Tensor, Tensor]:
        """The states at the start of each chunk, (b, k, g, n, r p), and after the last one.

        Without ``last`` the second of these may be any state, to save the work.
        """
        count = self._block.nchunks
        if count == 1 and not last:
            return state.unsqueeze(1), state
        added = self.B.transpose(-1, -2) @ self.left.flatten(4)
        carry = self._carry_columns()
        starts = [state]
        for index in range(count):
            starts.append(torch.addcmul(added[:, index], carry[:, index], starts[-1]))
        state = starts.pop()
        return torch.stack(starts, 1), state

    def state_gradients(
        self, dy_read: Tensor, starts: Tensor, dstate: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the states after each chunk, of the one before the block, of log carry."""
        read = self.C.transpose(-1, -2) @ dy_read.flatten(4)
        carry = self._carry_columns()
        ends = [dstate]
        for index in reversed(range(self._block.nchunks)):
            ends.append(torch.addcmul(read[:, index], carry[:, index], ends[-1]))
        dstate = ends.pop()
        dends = torch.stack(ends[::-1], 1)
        products = torch.unflatten((starts * dends).sum(3), -1, self.x.shape[-2:]).sum(-1)
        return dends, dstate, products.unsqueeze(3) * self._carry

    def _carry_columns(self) -> Tensor:
        return self._carry.repeat_interleave(self.x.shape[-1], -1)


def _blocks(scan: Scan, start: int, stop: int) -> list[Block]:
    """Blocks that cover the steps ``start:stop``; what is left of a chunk is one of its own."""
    batch, _, nheads, _ = scan.x.shape
    # Where states are rounded between chunks, these are as the caller says.
    chunk = CHUNK if scan.state_dtype is None else scan.chunk_size
    elements = BLOCK_ELEMENTS_CPU if scan.x.device.type == "cpu" else BLOCK_ELEMENTS
    most = max(1, elements // max(1, batch * nheads * chunk * chunk))
    blocks = []
    while stop - start >= chunk:
        blocks.append(Block(start, min(most, (stop - start) // chunk), chunk))
        start += blocks[-1].nchunks * chunk
    if start < stop:
        blocks.append(Block(start, 1, stop - start))
    return blocks


def steps_taken(scan: Scan) -> Tensor:
    """The steps that are taken, after bias, softplus and limits; none in padding."""
    raw = _raw_steps(scan)
    steps = (functional.softplus(raw) if scan.dt_softplus else raw).clamp(*scan.dt_limit)
    return steps if scan.seq_idx is None else steps.masked_fill(_padding(scan.seq_idx), 0)


def _slope(scan: Scan) -> Tensor:
    """The slope of :func:`steps_taken` in dt."""
    raw = _raw_steps(scan)
    slope = torch.sigmoid(raw) if scan.dt_softplus else torch.ones_like(raw)
    least, most = scan.dt_limit
    # Those that a block has unless it is told otherwise limit nothing.
    if not (scan.dt_softplus and least <= 0 and most == math.inf):
        free = functional.softplus(raw) if scan.dt_softplus else raw
        slope = slope.masked_fill((free < least) | (free > most), 0)
    return slope if scan.seq_idx is None else slope.masked_fill(_padding(scan.seq_idx), 0)


def _raw_steps(scan: Scan) -> Tensor:
    raw = scan.dt.to(scan.dtype)
    return raw if scan.dt_bias is None else raw + scan.dt_bias


def _padding(seq_idx: Tensor) -> Tensor:
    return (seq_idx < 0).unsqueeze(-1)


def finite(A: Tensor) -> Tensor:
    """A, where it is infinite so large that any step decays a state to 0, and none leaves it.

    A difference of infinite sums would be no number. What is large in float64 leaves room for sums.
    """
    return A.clamp(min=LARGE if A.dtype == torch.float64 else torch.finfo(A.dtype).min)


def _rounded(scan: Scan, states: Tensor) -> Tensor:
    """States as they are kept between chunks."""
    if scan.state_dtype is None:
        return states
    return states.to(scan.state_dtype).to(states.dtype)


def _resets(scan: Scan) -> Tensor | None:
    return None if scan.seq_idx is None else resets_before(scan.seq_idx)


def resets_before(seq_idx: Tensor) -> Tensor:
    """How often the sequence has changed up to each step; before the first it is sequence 0."""
    changed = seq_idx != functional.pad(seq_idx[:, :-1], (1, 0))
    return changed.cumsum(1, dtype=torch.int64)  # which ONNX asks for


def _first_state(scan: Scan) -> Tensor:
    batch, _, nheads, headdim = scan.x.shape
    groups, dstate = scan.B.shape[2:]
    if scan.initial_states is not None:
        return _private_state(scan.initial_states, groups, scan.dtype)
    columns = nheads // groups * headdim
    return scan.x.new_zeros(batch, groups, dstate, columns, dtype=scan.dtype)


def _private_state(state: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """The reverse of :func:`public_state`."""
    return torch.unflatten(state.to(dtype), 1, (groups, -1)).permute(0, 1, 4, 2, 3).flatten(3)


def _spanning(pairs: Tensor) -> Tensor:
    """For each step t the sum of ``pairs[i, j]`` over ``i >= t > j``."""
    before = pairs.cumsum(-1).tril_(-1).sum(-2)
    return functional.pad(before[..., :-1], (1, 0))
