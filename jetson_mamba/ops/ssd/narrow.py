"""Mamba-2's scan on a GPU with factors in bfloat16, in both directions.

What ``chunks`` does, for the calls that models in bfloat16 make: products of bfloat16, which are
exact, with sums in float32. The time of such a scan is that of its passes over memory and, at the
sizes of most models, that of a CPU which launches them. So what is as long as x or longer is in 16
bits wherever a pass takes that at full speed, and all that is as short as dt is put together by
two functions, :func:`_factors` before the products and :func:`_slopes` after them, each of which
one CUDA graph launches.

Axes are those of ``block``. A block of k chunks has k + 1 *ends*: where each chunk starts, and
where the last stops. What a chunk adds to the state, and the state before the block, which comes
last, are *sent* to an end and pass to all later ones, by one matrix for each head.
"""

from __future__ import annotations

import math
from typing import Any, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.replay.captured import Captured, Weights

from .block import LEAST_STEP, Block, operand_dtype, weighted
from .chunks import Gradients, Targets
from .contract import Scan
from .steps import finite, slope, steps_taken

WIDE, NARROW = torch.float32, torch.bfloat16
# A step that decays a state by exp(-104) leaves nothing of it in float32. Differences of sums of
# larger ones would lose their digits.
MOST_DECAY = 104.0
# Elements to which the rows of matrices are filled up: other products are far slower.
ALIGNED = 8


def serves(scan: Scan) -> bool:
    """Whether this scan is computed here: of one sequence a row, without a gate."""
    return (
        scan.z is None
        and scan.seq_idx is None
        and scan.state_dtype is None
        and (scan.D is None or scan.D.dim() == 1)
        and scan.dt_softplus
        and scan.dt_limit[0] >= 0
        and operand_dtype(scan) == NARROW
    )


def forward(scan: Scan, out: Tensor, cut: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """As ``chunks.forward``."""
    state = _first_state(scan)
    kept = []
    for block in cut:
        kept.append(state)
        local = _Local(scan, block)
        before = local.before(state)
        sent = local.sent(local.entering(), before)
        state = local.passed_through(sent, before)
        read = local.read(local.passed(sent))
        del sent
        local.output(read, local.view(out))
    return state, kept


def states(scan: Scan, cut: Sequence[Block]) -> list[Tensor]:
    """What :func:`forward` keeps."""
    kept = [_first_state(scan)]
    for block in cut[:-1]:
        local = _Local(scan, block)
        before = local.before(kept[-1])
        kept.append(local.passed_through(local.sent(local.entering(), before), before))
    return kept[: len(cut)]


def backward(
    scan: Scan,
    kept: Sequence[Tensor],
    dout: Tensor,
    dfinal_states: Tensor | None,
    targets: Targets,
    cut: Sequence[Block],
) -> Gradients:
    """As ``chunks.backward``."""
    dstate = None
    if dfinal_states is not None:
        dstate = dfinal_states.to(WIDE).reshape(_no_state(scan).shape)
    total = None
    for block, state in zip(reversed(cut), reversed(kept)):
        sums, dstate = _block_gradients(_Local(scan, block), state, dout, dstate, targets)
        total = sums if total is None else total + sums
    if total is None:
        total = scan.A.new_zeros(3, scan.A.shape[0], dtype=WIDE)
    dA, dD, dbias = total.unbind()
    dinitial = None
    if scan.initial_states is not None:
        dinitial = _no_state(scan) if dstate is None else dstate
        dinitial = dinitial.view(scan.initial_states.shape)
    return Gradients(
        A=dA,
        D=None if scan.D is None else dD,
        dt_bias=None if scan.dt_bias is None else dbias,
        initial_states=dinitial,
    )


def _no_state(scan: Scan) -> Tensor:
    batch, _, nheads, headdim = scan.x.shape
    groups, dstate = scan.B.shape[2:]
    return scan.x.new_zeros(batch, groups, nheads // groups * headdim, dstate, dtype=WIDE)


def _first_state(scan: Scan) -> Tensor:
    state = _no_state(scan)
    if scan.initial_states is not None:
        state = scan.initial_states.to(WIDE).reshape(state.shape)
    return state


def _block_gradients(
    local: _Local, state: Tensor, dout: Tensor, dafter: Tensor | None, targets: Targets
) -> tuple[Tensor, Tensor | None]:
    """Write the gradients of a block's long arguments; return those of A, D and dt_bias, (3,
    nheads), and that of the state before the block, None where there is none."""
    block, dy, before = local.block, local.view(dout), local.before(state)
    entering = local.entering()
    sent = local.sent(entering, before)
    starts = local.passed(sent)

    dinside, dCB, of_pairs = _pair_gradients(local, dy)
    dC = _product(dCB, local.B, WIDE)
    dB = _product(dCB.transpose(-1, -2), local.C, WIDE)

    # Through the state before each chunk and what each chunk adds to it, (k, b, g, r p, n).
    reads = _along(local.read(starts), dy)
    dread = local.per_step(dy, local.enter)
    dC += _product(dread, starts, WIDE)
    del starts
    dends = local.room(dafter)
    _product(dread.transpose(-1, -2), local.C, NARROW, out=dends[: block.nchunks])
    del dread
    through = local.between(dends, sent)
    del sent
    dsent = local.passed(dends, back=True)
    dbefore = None if before is None else local.passed_through(dends, dafter, back=True)
    del dends
    dB += _product(entering, dsent, WIDE)
    del entering
    dentering = local.heads(_product(local.B, dsent.transpose(-1, -2), NARROW))
    del dsent
    sends = _along(dentering, local.x)
    torch.addcmul(
        *(dinside.permute(0, 1, 4, 2, 3, 5), dentering, local.sending.unsqueeze(-1)),
        out=local.view(targets.x),
    )
    ddt, sums = _SLOPES(
        (local.dt, local.A, reads, sends, *of_pairs, through), local.weights, *local.options
    )
    local.steps(targets.dt).copy_(ddt)
    block.of(targets.B).copy_(dB.transpose(2, 3))
    block.of(targets.C).copy_(dC.transpose(2, 3))
    return sums, dbefore


def _pair_gradients(
    local: _Local, dy: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Through the (chunk, chunk) matrices: the gradients of x (k, b, g, r, q, p) and of ``C B``
    (k, b, g, q, q), and what :func:`_slopes` takes of pairs."""
    CB, exponents = local.scores(), local.exponents()
    dy_rows = local.per_head(dy, local.scale)
    dinside = _product(local.matrix(CB, exponents).transpose(-1, -2), dy_rows, NARROW)
    pairs = _product(dy_rows, local.per_head(local.x).transpose(-1, -2), WIDE)
    del dy_rows
    # What a step takes of itself crosses no step.
    alone = pairs.diagonal(dim1=-2, dim2=-1).clone()
    scores = CB.diagonal(dim1=-2, dim2=-1).clone()
    weighted(pairs, exponents, out=pairs)
    del exponents
    dCB = pairs.sum(3).tril_().to(NARROW)
    pairs *= CB.tril_(-1)
    size = pairs.shape[-1]
    rows = torch.mv(pairs.view(-1, size), pairs.new_ones(size)).view(alone.shape)
    return dinside, dCB, (alone, scores, rows, pairs.sum(-2))


class _Local:
    """One block, with the factors that it needs."""

    def __init__(self, scan: Scan, block: Block) -> None:
        self.block = block
        self.groups, self.dstate = scan.B.shape[2:]
        self._has_initial = scan.initial_states is not None
        self.dt, self.A = self.steps(scan.dt), scan.A
        self.x, self.B, self.C = self.view(scan.x), self._of(scan.B), self._of(scan.C)
        self.weights: Weights = (scan.dt_bias, scan.D)
        self.options = (self.groups, block.chunk, scan.dt_limit)
        wide, narrow = _FACTORS((self.dt, self.A), self.weights, *self.options)
        chunks, batch, size, groups, heads = self.x.shape[:5]
        steps, all_heads = batch * size * groups * heads * chunks, batch * groups * heads
        ends = _ends(chunks)
        rows, sources, own, carry = wide.split([steps, steps, all_heads * chunks, all_heads])
        by_head = (chunks, batch, groups, heads)
        self.rows, self.sources = rows.view(*by_head, size, 1), sources.view(*by_head, 1, size)
        self.own, self.carry = own.view(*by_head, 1), carry.view(batch, groups, heads, 1, 1)
        enter, sending, scale, passing = narrow.split(
            [steps, steps, all_heads * chunks, all_heads * ends * ends]
        )
        # (k, b, q, g, r)
        self.enter, self.sending = (each.view(self.x.shape[:5]) for each in (enter, sending))
        self.scale = scale.view(*by_head, 1, 1)
        self.passing = passing.view(all_heads, ends, ends)

    def steps(self, tensor: Tensor) -> Tensor:
        """This block's steps of (batch, seqlen, ...), as a view."""
        start, chunks, size = self.block
        return tensor[:, start : start + chunks * size]

    def view(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, nheads, ...), as a view (k, b, q, g, r, ...)."""
        return torch.unflatten(self.block.of(tensor), 3, (self.groups, -1))

    def _of(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, groups, dstate), as (k, b, g, q, n)."""
        return self.block.of(tensor).transpose(2, 3).contiguous()

    def per_head(self, view: Tensor, factor: Tensor | None = None) -> Tensor:
        """A view as (k, b, g, r, q, p), times a factor, in memory of its own."""
        view = view.permute(0, 1, 3, 4, 2, 5)
        return view.contiguous() if factor is None else _laid(view, factor)

    def per_step(self, view: Tensor, factor: Tensor) -> Tensor:
        """A view times a factor (k, b, q, g, r), as (k, b, g, q, r p), in memory of its own."""
        order = (0, 1, 3, 2, 4, 5)
        return _laid(view.permute(order), factor.unsqueeze(-1).permute(order)).flatten(4)

    def heads(self, values: Tensor) -> Tensor:
        """(k, b, g, q, r p) as a view (k, b, q, g, r, p)."""
        return torch.unflatten(values, -1, (-1, self.x.shape[-1])).transpose(2, 3)

    def scores(self) -> Tensor:
        """``C B`` of each step with those up to it, (k, b, g, 1, q, q)."""
        return _product(self.C, self.B.transpose(-1, -2), WIDE).tril_().unsqueeze(3)

    def exponents(self) -> Tensor:
        """``log(decay * dt / scale)`` (k, b, g, r, q, q) from step j to step i, at most 0 where
        ``j <= i``."""
        shape = (*self.rows.shape[:-1], self.rows.shape[-2])
        exponents = torch.empty(shape, dtype=WIDE, device=self.rows.device)
        return torch.sub(self.rows, self.sources, out=exponents)

    def matrix(self, CB: Tensor, exponents: Tensor) -> Tensor:
        """By what x is multiplied, over ``scale``: with the decays, the steps and D."""
        matrix = torch.empty(exponents.shape, dtype=NARROW, device=exponents.device)
        weighted(CB, exponents, out=matrix)
        matrix.diagonal(dim1=-2, dim2=-1).add_(self.own)
        return matrix

    def output(self, read: Tensor, out: Tensor) -> None:
        """Write the output of what each step reads of the state before its chunk."""
        matrix = self.matrix(self.scores(), self.exponents())
        inside = _product(matrix, self.per_head(self.x, self.scale), NARROW)
        del matrix
        inside = inside.permute(0, 1, 4, 2, 3, 5)
        torch.addcmul(inside, read, self.enter.unsqueeze(-1), out=out)

    def before(self, state: Tensor) -> Tensor | None:
        """The state before the block; None where that is none, and its gradient nobody's."""
        return state if self.block.start > 0 or self._has_initial else None

    def entering(self) -> Tensor:
        """What each step adds to the state at the end of its chunk, by B, (k, b, g, q, r p)."""
        return self.per_step(self.x, self.sending)

    def room(self, state: Tensor | None) -> Tensor:
        """Memory for a state of each chunk, (k, b, g, r p, n), and for this one after them."""
        chunks, batch, _, groups, heads, headdim = self.x.shape
        count = chunks if state is None else chunks + 1
        shape = (count, batch, groups, heads * headdim, self.dstate)
        room = torch.empty(shape, dtype=NARROW, device=self.x.device)
        if state is not None:
            room[-1] = state
        return room

    def sent(self, entering: Tensor, before: Tensor | None) -> Tensor:
        """What is sent to the ends of the chunks, and the state before the block."""
        sent = self.room(before)
        _product(entering.transpose(-1, -2), self.B, NARROW, out=sent[: self.block.nchunks])
        return sent

    def passed(self, sent: Tensor, back: bool = False) -> Tensor:
        """The state before each chunk, (k, b, g, r p, n), of what is sent. ``back``: the gradients
        of what the chunks send, of those of the states at the ends."""
        count, chunks = len(sent), self.block.nchunks
        passing = self.passing.transpose(1, 2) if back else self.passing
        found = torch.empty((chunks, *sent.shape[1:]), dtype=NARROW, device=sent.device)
        torch.bmm(*(passing[:, :chunks, :count], self._by_head(sent)), out=self._by_head(found))
        return found

    def passed_through(self, sent: Tensor, before: Tensor | None, back: bool = False) -> Tensor:
        """The state after the block, (b, g, r p, n). ``back``: the gradient of that before it."""
        chunks = self.block.nchunks
        passing = self.passing.transpose(1, 2) if back else self.passing
        by_head = self._by_head(sent[:chunks])
        found = _wide(passing[:, chunks : chunks + 1, :chunks], by_head).view(
            *self.carry.shape[:3], -1, self.dstate
        )
        if before is not None:
            found = found + self.carry * before.view(found.shape)
        return found.flatten(2, 3)

    def between(self, dends: Tensor, sent: Tensor) -> Tensor:
        """The gradient of the matrix by which states pass, (b g r, ends, sent)."""
        return _wide(self._by_head(dends), self._by_head(sent).transpose(1, 2))

    def _by_head(self, states: Tensor) -> Tensor:
        """(k, b, g, r p, n) as a view (b g r, k, p n)."""
        return states.view(len(states), len(self.passing), -1).transpose(0, 1)

    def read(self, starts: Tensor) -> Tensor:
        """What each step reads of the state before its chunk, undecayed, (k, b, q, g, r, p)."""
        return self.heads(_product(self.C, starts.transpose(-1, -2), NARROW))


def _laid(values: Tensor, factor: Tensor) -> Tensor:
    """A product in the order of its axes."""
    return torch.mul(
        values, factor, out=torch.empty(values.shape, dtype=NARROW, device=values.device)
    )


def _along(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, dtype=WIDE)


def _product(a: Tensor, b: Tensor, dtype: torch.dtype, out: Tensor | None = None) -> Tensor:
    """``a @ b`` with results in ``dtype``, or into ``out``, of axes that are the same before the
    last two."""
    first, second = a.flatten(0, -3), b.flatten(0, -3)
    if out is not None:
        return torch.bmm(first, second, out=out.flatten(0, -3))
    found = torch.bmm(first, second) if dtype == NARROW else _wide(first, second)
    return found.view(*a.shape[:-1], b.shape[-1])


def _wide(a: Tensor, b: Tensor) -> Tensor:
    return torch.bmm(a, b, out_dtype=WIDE)


class _Decays:
    """The steps of a block and their decays, (k, b, g, r, q), in float64 but for the steps."""

    def __init__(
        self, inputs: tuple[Tensor, ...], weights: Weights, options: tuple[Any, ...]
    ) -> None:
        dt, A = inputs[:2]
        self.bias, self.D = weights
        groups, size, dt_limit = options
        self.scan = Scan(
            *(dt, dt, A, dt, dt, self.D, None, self.bias),
            *(None, None, None, size, True, dt_limit),
        )
        self.shape = (dt.shape[0], dt.shape[1] // size, size, groups, A.shape[0] // groups)
        steps = steps_taken(self.scan).to(WIDE).reshape(self.shape)
        self.steps = steps.permute(1, 0, 3, 4, 2).contiguous()
        self.A = finite(A.double()).view(groups, -1, 1)
        self.log = (self.steps * self.A).clamp_(min=-MOST_DECAY).cumsum(-1)
        self.last = self.log[..., -1:]
        self.enter, self.leave = self.log.exp(), (self.last - self.log).exp()
        self.lengths = self.steps.clamp(min=LEAST_STEP)
        lengths = self.lengths.double().log_()
        self.sources = self.log - lengths
        # All steps of a head decay its state, or all let it grow.
        greatest = lengths.amax(-1, keepdim=True) + self.last.clamp(min=0)
        self.power = (greatest / math.log(2.0)).ceil_()
        # As a state passes from each source, the first of which is after the first chunk, to each
        # end: (b, g, r, k + 1, k + 1).
        total = functional.pad(self.last.squeeze(-1).cumsum(0), (0, 0) * 3 + (1, 0))
        total = total.permute(1, 2, 3, 0)
        sources = total.roll(-1, -1)
        passing = (total.unsqueeze(-1) - sources.unsqueeze(-2)).exp_()
        # The upper half is left out after exp: there the difference is positive.
        self.passing = passing.tril_(-1)
        self.passing[..., -1] = total.exp()


def _ends(chunks: int) -> int:
    """The ends of that many chunks, filled up."""
    return -(-(chunks + 1) // ALIGNED) * ALIGNED


def _factors(inputs: tuple[Tensor, ...], weights: Weights, *options: Any) -> tuple[Tensor, ...]:
    """What a block is multiplied by, of dt (batch, steps, nheads), A, dt_bias and D: in float32 and
    in bfloat16, one after another, as :class:`_Local` takes them apart."""
    found = _Decays(inputs, weights, options)
    scale = found.power.exp2()
    own = torch.zeros_like(scale)
    if found.D is not None:
        own = found.D.double().view(found.A.shape) / scale
    wide = (
        found.log - found.power * math.log(2.0),
        found.sources,
        own,
        found.passing[..., -1, -1],
    )
    chunks = len(found.steps)
    missing = _ends(chunks) - chunks - 1
    along = (found.enter, found.leave * found.steps)
    narrow = (
        *(each.permute(0, 1, 4, 2, 3) for each in along),
        scale,
        functional.pad(found.passing, (0, missing, 0, missing)),
    )
    return tuple(
        torch.cat([each.flatten() for each in parts]).to(dtype)
        for parts, dtype in ((wide, WIDE), (narrow, NARROW))
    )


def _slopes(inputs: tuple[Tensor, ...], weights: Weights, *options: Any) -> tuple[Tensor, ...]:
    """The gradients of dt (batch, steps, nheads), and of A, D and dt_bias, (3, nheads).

    After dt and A come the gradients of the factors: ``reads`` and ``sends`` (k, b, q, g, r) of
    ``enter`` and ``sending``; of pairs of steps what a step has of itself (k, b, g, r, q) over
    scale, times ``scores`` (k, b, g, 1, q), and the sums (k, b, g, r, q) of the others over the
    earlier and over the later step; and that of ``passing`` (b g r, ends, sent).
    """
    found = _Decays(inputs, weights, options)
    reads, sends, alone, scores, rows, columns, through = inputs[2:]
    reads, sends = (each.permute(0, 1, 3, 4, 2) for each in (reads, sends))
    alone = alone / found.power.exp2()
    ddt = columns / found.lengths + alone * scores + sends * found.leave
    # Each came through the decays of the steps that it crosses. The sums over rows and columns are
    # of the same numbers, of which those cancel that do not.
    back = rows.double() - columns + reads * found.enter
    dlog = back.flip(-1).cumsum(-1).flip(-1)
    dlog[..., 1:] += (sends * found.leave * found.steps).cumsum(-1)[..., :-1]
    ends, sent = through.shape[-2:]
    chunks = len(found.steps)
    passed = through.view(*found.passing.shape[:3], ends, sent) * found.passing[..., :ends, :sent]
    flow = functional.pad(passed.sum(-1), (0, chunks + 1 - ends))
    flow[..., 1:] -= passed.sum(-2)[..., :chunks]
    crossing = flow.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    dlog += crossing.permute(3, 0, 1, 2).unsqueeze(-1)
    ddt = ddt + dlog * found.A
    dA = (dlog * found.steps).sum((0, 1, 4))
    ddt = ddt.permute(1, 0, 4, 2, 3).reshape(inputs[0].shape) * slope(found.scan)
    sums = (dA.flatten(), alone.sum((0, 1, 4)).flatten(), ddt.sum((0, 1)))
    return ddt.to(WIDE), torch.stack([each.to(WIDE) for each in sums])


_FACTORS, _SLOPES = Captured(_factors), Captured(_slopes)
