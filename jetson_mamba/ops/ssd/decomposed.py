"""Mamba-2's scan as operations of a graph in which no size of the input is fixed.

An exported program that is decomposed holds these in place of the operators: see
``dispatch/operators.py``. As in ``composed``, a chunk is multiplication by a masked matrix, and a
masked matrix passes the state between chunks. But a runtime need not know float64, in which a
difference of two long sums of decays is exact enough. So each sum is taken by itself, over the
steps that lie between two steps: that is one more product of matrices, and nothing cancels.

Axes are named as in ``chunks``; chunks of all sequences stand side by side, in an axis m = b k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from .block import CHUNK
from .contract import Mixer, Scan
from .mixer import compose
from .steps import finite, resets_before, steps_taken

# The logarithm of a decay to nothing, of which sums are finite.
GONE = -1e4


def scan(given: Scan) -> tuple[Tensor, Tensor]:
    """The output before the gate and the last state; ``given`` has no z."""
    dtype = given.dtype
    batch, seqlen, nheads, headdim = given.x.shape
    groups, dstate = given.B.shape[2:]
    heads = nheads // groups
    size = CHUNK if given.state_dtype is None else given.chunk_size
    is_open = not isinstance(seqlen, int)
    size = size if is_open else min(size, seqlen)
    # One more than there must be, so that there are two: where a size may be 1, and where it is,
    # torch would make another graph.
    count = (seqlen + (size if is_open else 0) + size - 1) // size
    missing, rows = count * size - seqlen, batch * count

    def chunked(tensor: Tensor) -> Tensor:
        """(batch, seqlen, h, w) as (m, h, q, w); steps that are missing are 0."""
        padded = functional.pad(tensor.to(dtype), (0, 0, 0, 0, 0, missing))
        return padded.reshape(rows, size, *tensor.shape[2:]).transpose(1, 2)

    steps = steps_taken(given)
    u = chunked(given.x.to(dtype) * steps.unsqueeze(-1))
    log = (steps * finite(given.A.to(dtype))).clamp(min=GONE)
    if given.seq_idx is not None:
        passed = resets_before(given.seq_idx)
        starts = passed != functional.pad(passed[:, :-1], (1, 0))
        log = log.masked_fill(starts.unsqueeze(-1), GONE)
    log = chunked(log.unsqueeze(-1)).reshape(rows * nheads, size)
    B = chunked(given.B).reshape(rows * groups, size, dstate)
    C = chunked(given.C).reshape(rows * groups, size, dstate)

    decay, entering = _decays(log)  # (m h) q q, (m h) q
    matrix = torch.bmm(C, B.transpose(1, 2)).reshape(rows, groups, 1, size, size)
    matrix = matrix * decay.reshape(rows, groups, heads, size, size)
    u = u.reshape(rows * nheads, size, headdim)
    inside = torch.bmm(matrix.reshape(rows * nheads, size, size), u)

    # What each chunk adds to the state, and of what was there before what is left after it.
    leaving = (u * decay[:, -1].unsqueeze(-1)).reshape(rows * groups, heads, size, headdim)
    columns = heads * headdim
    leaving = leaving.transpose(1, 2).reshape(rows * groups, size, columns)
    added = torch.bmm(B.transpose(1, 2), leaving)  # (m g) n (r p)
    added = added.reshape(batch, count, groups, dstate, heads, headdim).permute(0, 2, 4, 1, 3, 5)
    added = added.reshape(batch * nheads, count, dstate * headdim)
    if given.initial_states is None:
        first = added.new_zeros(batch * nheads, 1, dstate * headdim)
    else:
        first = given.initial_states.to(dtype).transpose(2, 3)
        first = first.reshape(batch * nheads, 1, dstate * headdim)
    through = log.sum(-1).clamp(min=GONE).reshape(batch, count, nheads).transpose(1, 2)
    between, _ = _decays(functional.pad(through, (1, 0)).reshape(batch * nheads, count + 1))
    carried = torch.bmm(between, torch.cat((first, added), 1))  # (b h) k+1 (n p)

    starts = carried[:, :-1]
    if given.state_dtype is not None:
        starts = starts.to(given.state_dtype).to(dtype)
    starts = starts.reshape(batch, groups, heads, count, dstate, headdim).permute(0, 3, 1, 4, 2, 5)
    read = torch.bmm(C, starts.reshape(rows * groups, dstate, columns))  # (m g) q (r p)
    read = read.reshape(rows * groups, size, heads, headdim).transpose(1, 2)
    out = inside + read.reshape(rows * nheads, size, headdim) * entering.exp().unsqueeze(-1)
    out = out.reshape(rows, nheads, size, headdim).transpose(1, 2)
    out = out.reshape(batch, count * size, nheads, headdim)[:, :seqlen]
    if given.D is not None:
        D = given.D.to(dtype)
        out = out + given.x.to(dtype) * (D.unsqueeze(-1) if D.dim() == 1 else D)
    state = carried[:, -1].reshape(batch, nheads, dstate, headdim).transpose(2, 3)
    return out.to(given.x.dtype), state.contiguous()


def core(given: Mixer) -> tuple[Tensor, ...]:
    """A mixer between norm and projection, and nothing of what a backward pass is given again."""
    out, state = compose(given, scan, None)
    return (out, state, *(out.new_empty(0) for _ in range(3)))


def _decays(log: Tensor) -> tuple[Tensor, Tensor]:
    """Of steps with these logarithms (rows, q): the decays to i of what j adds, and sums to i.

    The decays (rows, i, j) are ``exp(sum(log[j + 1 : i + 1]))`` for ``j <= i``, else 0; the sums
    (rows, i) are ``sum(log[: i + 1])``.
    """
    size = log.shape[1]
    places = torch.arange(size, device=log.device)
    lower = (places.unsqueeze(1) >= places).to(log.dtype)
    after = (places.unsqueeze(1) > places).to(log.dtype)
    sums = torch.matmul(lower, (log.unsqueeze(-1) * after))
    return sums.exp() * lower, log @ lower.t()
