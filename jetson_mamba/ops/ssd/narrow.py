"""Mamba-2's scan on a GPU with factors in bfloat16, in both directions.

What ``chunks`` does, for the calls that models in bfloat16 make: products of bfloat16, which are
exact, with sums in float32. The time of such a scan is that of its passes over memory and, at the
sizes of most models, that of a CPU which launches them. So what is as long as x or longer is in 16
bits wherever a pass takes that at full speed; but the last state, where that is asked for, has the
digits of float32. All that is as short as dt is put together by two functions of :mod:`.short`, one
before the products and one after them, each of which one CUDA graph launches.

Axes are those of ``block``. A block of k chunks has k + 1 *ends*: where each chunk starts, and
where the last stops. What a chunk adds to the state, and the state before the block, which comes
last, are *sent* to an end and pass to all later ones, by one matrix for each head.
"""

from __future__ import annotations

from typing import Sequence

import torch
from torch import Tensor

from .block import Block, operand_dtype, weighted
from .chunks import Gradients, Targets
from .contract import Scan
from .short import FACTORS, NARROW, SLOPES, WIDE, ends_of


def serves(scan: Scan) -> bool:
    """Whether this scan is computed here: of one sequence a row, without a gate."""
    return (
        scan.x.numel() > 0
        and scan.z is None
        and scan.seq_idx is None
        and scan.state_dtype is None
        and (scan.D is None or scan.D.dim() == 1)
        and scan.dt_softplus
        and scan.dt_limit[0] >= 0
        and operand_dtype(scan) == NARROW
    )


def forward(scan: Scan, out: Tensor, cut: Sequence[Block]) -> tuple[Tensor, list[Tensor]]:
    """As ``chunks.forward``; of each block its factors are kept too."""
    state = _first_state(scan)
    kept = []
    for block in cut:
        local = _Local(scan, block)
        kept += [state, *local.factors]
        before = local.before(state)
        sent = local.sent(local.entering(), before)
        if scan.last_state:
            state = local.state_after(scan.B, before)
        elif block is not cut[-1]:
            state = local.passed_through(sent, before)
        read = local.read(local.passed(sent))
        del sent
        local.output(read, local.view(out))
    return state, kept


def states(scan: Scan, cut: Sequence[Block]) -> list[Tensor]:
    """What :func:`forward` keeps."""
    state = _first_state(scan)
    kept = []
    for block in cut:
        local = _Local(scan, block)
        kept += [state, *local.factors]
        if block is not cut[-1]:
            before = local.before(state)
            state = local.passed_through(local.sent(local.entering(), before), before)
    return kept


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
        dstate = _private_state(dfinal_states, scan)
    total: Tensor | None = None
    for number in range(len(cut) - 1, -1, -1):
        state, *factors = kept[3 * number : 3 * number + 3]
        local = _Local(scan, cut[number], factors)
        sums, dstate = _block_gradients(local, state, dout, dstate, targets)
        total = sums if total is None else total + sums
    assert total is not None
    dA, dD, dbias = total.unbind()
    dinitial = None
    if scan.initial_states is not None and dstate is not None:
        dinitial = dstate.view(scan.initial_states.shape)
    return Gradients(
        A=dA,
        D=None if scan.D is None else dD,
        dt_bias=None if scan.dt_bias is None else dbias,
        initial_states=dinitial,
    )


def _first_state(scan: Scan) -> Tensor:
    """The initial one, and of none something that is saved in its place."""
    if scan.initial_states is None:
        return scan.A.new_empty(0)
    return _private_state(scan.initial_states, scan)


def _private_state(state: Tensor, scan: Scan) -> Tensor:
    """(batch, nheads, headdim, dstate) as (b, g, r p, n)."""
    groups, dstate = scan.B.shape[2:]
    return state.to(WIDE).reshape(len(state), groups, -1, dstate)


def _block_gradients(
    local: _Local, state: Tensor, dout: Tensor, dafter: Tensor | None, targets: Targets
) -> tuple[Tensor, Tensor | None]:
    """Write the gradients of a block's long arguments; return those of A, D and dt_bias, (3,
    nheads), and that of the state before the block, None where there is none."""
    dy, before = local.view(dout), local.before(state)
    entering = local.entering()
    sent = local.sent(entering, before)
    starts = local.by_chunk(local.passed(sent))

    dinside, dCB, of_pairs = _pair_gradients(local, dy)
    dC = _wide(dCB, local.B)
    dB = _wide(dCB.transpose(1, 2), local.C)

    # Through the state before each chunk and what each chunk adds to it.
    reads = _along(local.heads(torch.bmm(local.C, starts.transpose(1, 2))), dy)
    dread = local.per_step(dy, local.enter)
    dC += _wide(dread, starts)
    del starts
    dends = local.room(dafter)
    torch.bmm(dread.transpose(1, 2), local.C, out=local.by_chunk(dends))
    del dread
    through = _wide(dends.transpose(0, 1), sent.permute(1, 2, 0))
    del sent
    dsent = local.by_chunk(local.passed(dends, back=True))
    dbefore = None if before is None else local.passed_through(dends, dafter, back=True)
    del dends
    dB += _wide(entering, dsent)
    del entering
    dentering = local.heads(torch.bmm(local.B, dsent.transpose(1, 2)))
    del dsent
    sends = _along(dentering, local.x)
    torch.addcmul(dinside, dentering, local.sending.transpose(2, 3), out=local.view(targets.x))
    ddt, sums = SLOPES((*local.short, reads, sends, *of_pairs, through), (), *local.options)
    local.steps(targets.dt).copy_(ddt)
    for target, found in ((targets.B, dB), (targets.C, dC)):
        of_groups = local.of_groups(target)
        of_groups.copy_(found.view(of_groups.shape))
    return sums, dbefore


def _pair_gradients(
    local: _Local, dy: Tensor
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Through the (chunk, chunk) matrices: the gradients of x (k, b, q, g, r, p) and of ``C B``
    (k b g, q, q), and what :func:`.short.slopes` takes of pairs."""
    CB, exponents = local.scores(), local.exponents()
    dy_rows = local.per_head(dy, local.scale)
    dinside = torch.bmm(local.matrix(CB, exponents).transpose(1, 2), dy_rows)
    pairs = _wide(dy_rows, local.per_head(local.x).transpose(1, 2)).view(exponents.shape)
    del dy_rows
    # What a step takes of itself crosses no step.
    alone = pairs.diagonal(dim1=-2, dim2=-1).clone()
    scores = CB.diagonal(dim1=-2, dim2=-1).clone()
    weighted(pairs, exponents, out=pairs)
    del exponents
    dCB = pairs.sum(3).tril_().to(NARROW).flatten(0, 2)
    pairs *= CB.tril_(-1)
    size = pairs.shape[-1]
    rows = torch.mv(pairs.view(-1, size), pairs.new_ones(size)).view(alone.shape)
    return local.of_heads(dinside), dCB, (alone, scores, rows, pairs.sum(-2))


class _Local:
    """One block, with the factors that it needs.

    Matrices are in the form of ``torch.bmm``, with axes that go through them by (k b g) or
    (k b g r); states are (k, b g r, p n), one of each chunk, or an end more. Every view costs a CPU
    time, so there are few.
    """

    def __init__(self, scan: Scan, block: Block, factors: Sequence[Tensor] | None = None) -> None:
        batch, _, nheads, headdim = scan.x.shape
        groups, self.dstate = scan.B.shape[2:]
        _, chunks, size = block
        heads, all_heads = nheads // groups, batch * nheads
        self.block, self._has_initial = block, scan.initial_states is not None
        self._sizes = (chunks, batch, size, groups, heads, headdim)
        self._x, self.x = scan.x, self.view(scan.x)
        self.B, self.C = (
            self.of_groups(each).contiguous().view(-1, size, self.dstate)
            for each in (scan.B, scan.C)
        )
        # All are inputs, so that every layer of a model is launched by the same graphs.
        vectors = (scan.A, scan.dt_bias, scan.D)
        self.short = (self.steps(scan.dt), *(each for each in vectors if each is not None))
        given = (scan.dt_bias is not None, scan.D is not None)
        self.options = (*given, groups, size, scan.dt_limit)
        if factors is None:
            factors = FACTORS(self.short, (), *self.options)
        self.factors = wide, narrow = factors
        ends, per_chunk = ends_of(chunks), chunks * all_heads
        steps = per_chunk * size
        rows, sources, lasting, own, carry = torch.split_with_sizes(
            wide, (steps, steps, steps, per_chunk, all_heads)
        )
        by_head = (chunks, batch, groups, heads)
        self.rows, self.sources = rows.view(*by_head, size, 1), sources.view(*by_head, 1, size)
        # (b, g, k q, r, 1)
        self.lasting = lasting.view(batch, groups, chunks * size, heads, 1)
        self.own, self.carry = own.view(*by_head, 1), carry.view(all_heads, 1)
        enter, sending, scale, passing = torch.split_with_sizes(
            narrow, (steps, steps, per_chunk, all_heads * ends * ends)
        )
        # (k, b, g, q, r, 1)
        self.enter, self.sending = (
            each.view(chunks, batch, groups, size, heads, 1) for each in (enter, sending)
        )
        self.scale = scale.view(*by_head, 1, 1)
        self._passing = passing.view(all_heads, ends, ends)

    def steps(self, tensor: Tensor) -> Tensor:
        """This block's steps of (batch, seqlen, ...), as a view."""
        start, chunks, size = self.block
        return tensor[:, start : start + chunks * size]

    def view(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, nheads, headdim), as a view (k, b, q, g, r, p)."""
        by_batch, by_step, by_head, by_channel = tensor.stride()
        return tensor.as_strided(
            self._sizes,
            (
                *(self.block.chunk * by_step, by_batch, by_step),
                *(self._sizes[4] * by_head, by_head, by_channel),
            ),
            tensor.storage_offset() + self.block.start * by_step,
        )

    def of_groups(self, tensor: Tensor) -> Tensor:
        """This block of (batch, seqlen, groups, dstate), as a view (k, b, g, q, n)."""
        by_batch, by_step, by_group, by_state = tensor.stride()
        chunks, batch, size, groups = self._sizes[:4]
        return tensor.as_strided(
            (chunks, batch, groups, size, self.dstate),
            (size * by_step, by_batch, by_group, by_step, by_state),
            tensor.storage_offset() + self.block.start * by_step,
        )

    def per_head(self, view: Tensor, factor: Tensor | None = None) -> Tensor:
        """A view, times a factor (k, b, g, r, 1, 1), as (k b g r, q, p), in memory of its own."""
        view = view.permute(0, 1, 3, 4, 2, 5)
        found = view.contiguous() if factor is None else _laid(view, factor)
        return found.view(-1, *found.shape[4:])

    def per_step(self, view: Tensor, factor: Tensor) -> Tensor:
        """A view times a factor (k, b, g, q, r, 1), as (k b g, q, r p), in memory of its own."""
        size, headdim = self._sizes[2], self._sizes[5]
        found = _laid(view.transpose(2, 3), factor)
        return found.view(-1, size, self._sizes[4] * headdim)

    def heads(self, values: Tensor) -> Tensor:
        """(k b g, q, r p) as a view (k, b, q, g, r, p)."""
        chunks, batch, size, groups, heads, headdim = self._sizes
        return values.view(chunks, batch, groups, size, heads, headdim).transpose(2, 3)

    def of_heads(self, values: Tensor) -> Tensor:
        """(k b g r, q, p) as a view (k, b, q, g, r, p)."""
        chunks, batch, size, groups, heads, headdim = self._sizes
        return values.view(chunks, batch, groups, heads, size, headdim).permute(0, 1, 4, 2, 3, 5)

    def scores(self) -> Tensor:
        """``C B`` of each step with those up to it, (k, b, g, 1, q, q)."""
        chunks, batch, size, groups = self._sizes[:4]
        found = _wide(self.C, self.B.transpose(1, 2)).tril_()
        return found.view(chunks, batch, groups, 1, size, size)

    def exponents(self) -> Tensor:
        """``log(decay * dt / scale)`` (k, b, g, r, q, q) from step j to step i, at most 0 where
        ``j <= i``."""
        return self.rows - self.sources

    def matrix(self, CB: Tensor, exponents: Tensor) -> Tensor:
        """By what x is multiplied, over ``scale``: with the decays, the steps and D."""
        matrix = torch.empty_like(exponents, dtype=NARROW)
        weighted(CB, exponents, out=matrix)
        matrix.diagonal(dim1=-2, dim2=-1).add_(self.own)
        return matrix.view(-1, *matrix.shape[4:])

    def output(self, read: Tensor, out: Tensor) -> None:
        """Write the output of what each step reads of the state before its chunk."""
        matrix = self.matrix(self.scores(), self.exponents())
        inside = self.of_heads(torch.bmm(matrix, self.per_head(self.x, self.scale)))
        del matrix
        torch.addcmul(inside, read, self.enter.transpose(2, 3), out=out)

    def before(self, state: Tensor) -> Tensor | None:
        """The state before the block; None where that is none, and its gradient nobody's."""
        return state if self.block.start > 0 or self._has_initial else None

    def entering(self) -> Tensor:
        """What each step adds to the state at the end of its chunk, by B, (k b g, q, r p)."""
        return self.per_step(self.x, self.sending)

    def room(self, state: Tensor | None) -> Tensor:
        """Memory for a state of each chunk, and for this one after them."""
        chunks, batch, _, groups, heads, headdim = self._sizes
        count = chunks if state is None else chunks + 1
        room = self.B.new_empty(count, batch * groups * heads, headdim * self.dstate)
        if state is not None:
            room[-1] = state.view(room.shape[1:])
        return room

    def by_chunk(self, states: Tensor) -> Tensor:
        """The states of the chunks as a view (k b g, r p, n)."""
        chunks, _, _, _, heads, headdim = self._sizes
        if len(states) > chunks:
            states = states[:chunks]
        return states.view(-1, heads * headdim, self.dstate)

    def sent(self, entering: Tensor, before: Tensor | None) -> Tensor:
        """What is sent to the ends of the chunks, and the state before the block."""
        sent = self.room(before)
        torch.bmm(entering.transpose(1, 2), self.B, out=self.by_chunk(sent))
        return sent

    def passed(self, sent: Tensor, back: bool = False) -> Tensor:
        """The state before each chunk, of what is sent. ``back``: the gradients of what the chunks
        send, of those of the states at the ends."""
        passing = self._passing.transpose(1, 2) if back else self._passing
        found = self.room(None)
        torch.bmm(
            *(passing[:, : self.block.nchunks, : len(sent)], sent.transpose(0, 1)),
            out=found.transpose(0, 1),
        )
        return found

    def passed_through(self, sent: Tensor, before: Tensor | None, back: bool = False) -> Tensor:
        """The state after the block, (b, g, r p, n). ``back``: the gradient of that before it."""
        chunks, batch, _, groups = self._sizes[:4]
        passing = self._passing.transpose(1, 2) if back else self._passing
        by_head = sent[:chunks].transpose(0, 1)
        found = _wide(passing[:, chunks : chunks + 1, :chunks], by_head).squeeze(1)
        if before is not None:
            found = torch.addcmul(found, self.carry, before.view(found.shape))
        return found.view(batch, groups, -1, self.dstate)

    def state_after(self, B: Tensor, before: Tensor | None) -> Tensor:
        """The state after the block, (b, g, r p, n), in the digits of float32.

        What a step writes is two numbers of bfloat16, the second of which is what the first lost.
        """
        batch, groups, steps, heads, _ = self.lasting.shape
        x = self.steps(self._x).unflatten(2, (groups, heads)).transpose(1, 2)
        first, lost = (torch.empty(x.shape, dtype=NARROW, device=x.device) for _ in range(2))
        torch.mul(x, self.lasting, out=first)
        torch.addcmul(first, x, self.lasting, value=-1, out=lost)
        by_step = self.steps(B).transpose(1, 2).reshape(batch * groups, steps, self.dstate)
        written, rest = (
            _wide(each.view(batch * groups, steps, -1).transpose(1, 2), by_step)
            for each in (first, lost)
        )
        found = written.sub_(rest).view(batch * groups * heads, -1)
        if before is not None:
            found = torch.addcmul(found, self.carry, before.view(found.shape))
        return found.view(batch, groups, -1, self.dstate)

    def read(self, starts: Tensor) -> Tensor:
        """What each step reads of the state before its chunk, undecayed, (k, b, q, g, r, p)."""
        return self.heads(torch.bmm(self.C, self.by_chunk(starts).transpose(1, 2)))


def _laid(values: Tensor, factor: Tensor) -> Tensor:
    """A product in the order of its axes."""
    return torch.mul(
        values, factor, out=torch.empty(values.shape, dtype=NARROW, device=values.device)
    )


def _along(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(-1, dtype=WIDE)


def _wide(a: Tensor, b: Tensor) -> Tensor:
    """A product of bfloat16 with results in float32."""
    return torch.bmm(a, b, out_dtype=WIDE)
