"""Mamba-2's scan, also its mixer, as plain tensor operations for whatever looks at each.

Exporters and ``torch.jit.trace`` record them, ``torch.func`` transforms them, autograd takes
derivatives of any order and in both directions. So nothing here is written in place or depends on
a tensor's values. Chunks are as in ``chunks``, all of them worked on at once, and between them too
the state passes by one masked matrix: there is no loop that a graph would hold unrolled, and a
trace is right at other sizes. This takes the memory that ``chunks`` saves; axes have the names that
they have there, m is that of chunks that a state comes from.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.autocast import without_autocast
from jetson_mamba.dispatch.tracing import beside, is_traced, missing, sizes, unflatten

from .block import CHUNK
from .contract import Mixer, Scan
from .gates import gate
from .mixer import compose
from .steps import finite, resets_before, steps_taken

# Of longer sequences a chunk has the square root, so that both matrices stay of one size.
MANY_STEPS = CHUNK * CHUNK


def scan(given: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, last state, and with ``cu_seqlens`` the state at the end of each sequence."""
    with without_autocast(given.x.device):
        return _scan(given)


def mixer(given: Mixer, projection_dtype: torch.dtype | None) -> tuple[Tensor, Tensor]:
    """Output after norm, gate and projection, and the last state of the scan."""
    return compose(given, lambda inner: _scan(inner)[:2], projection_dtype)


def _scan(given: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    dtype = given.dtype
    seqlen, _, headdim = given.x.shape[1:]
    groups, dstate = given.B.shape[2:]
    size = _chunk(given)
    padding = missing(seqlen, size)
    is_padded = is_traced() or padding != 0
    if is_traced():
        given = _beside_x(given)
    if given.seq_idx is not None:
        # Which ONNX refuses of a constant for other sizes.
        given = given._replace(seq_idx=given.seq_idx.expand(given.x.shape[0], seqlen))

    def chunked(tensor: Tensor) -> Tensor:
        """(batch, seqlen, ...) as (b, k, q, ...); steps of padding are 0."""
        if is_padded:
            tensor = functional.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, padding))
        return unflatten(tensor, 1, (-1, size))

    def heads(tensor: Tensor) -> Tensor:
        """(batch, seqlen, nheads, ...) as (b, k, g, q, r, ...)."""
        return unflatten(chunked(tensor.to(dtype)), 3, (groups, -1)).transpose(2, 3)

    steps = steps_taken(given)
    x, dt = heads(given.x), heads(steps)
    B, C = (chunked(each.to(dtype)).transpose(2, 3) for each in (given.B, given.C))
    u = x * dt.unsqueeze(-1)
    A = unflatten(finite(given.A.double()), 0, (groups, 1, -1))
    log = (dt * A).cumsum(3)
    whole = log[:, :, :, -1]  # b k g r
    enter = log.to(dtype).exp()
    leave = (whole.unsqueeze(3) - log).to(dtype).exp()

    # Whether two steps, or two states between chunks, belong to one sequence.
    together = between = None
    if given.seq_idx is not None:
        passed = resets_before(given.seq_idx)
        if is_padded:
            passed = torch.cat([passed, passed[:, -1:].expand(-1, padding)], 1)
        passed = unflatten(passed, 1, (-1, size))
        last = passed[:, :, -1]
        ends = functional.pad(last, (1, 0))  # what has passed before each chunk, and in the end
        together = (passed.unsqueeze(-1) == passed.unsqueeze(-2))[:, :, None, None]
        between = (ends.unsqueeze(-1) == ends.unsqueeze(-2))[:, None, None]
        enter = enter * (passed == ends[:, :-1].unsqueeze(-1))[:, :, None, :, None]
        leave = leave * (passed == last.unsqueeze(-1))[:, :, None, :, None]

    decay = _decays(log.transpose(3, 4), dtype, together)
    matrix = (C @ B.transpose(-1, -2)).unsqueeze(3) * decay
    inside = (matrix @ u.transpose(3, 4)).transpose(3, 4)

    # The state at the start of each chunk, and after the last: what each has added, (b, g, r, m,
    # n p), and first of all the initial one.
    added = B.transpose(-1, -2) @ (u * leave.unsqueeze(-1)).flatten(4)  # b k g n (r p)
    added = unflatten(added, -1, (-1, headdim)).permute(0, 2, 4, 1, 3, 5).flatten(4)
    first = added.new_zeros(*added.shape[:3], 1, added.shape[4])
    if given.initial_states is not None:
        first = unflatten(given.initial_states.to(dtype), 1, (groups, -1))
        first = first.transpose(-1, -2).flatten(3).unsqueeze(3)
    passing = functional.pad(whole.permute(0, 2, 3, 1).cumsum(-1), (1, 0))  # b g r m
    carried = _decays(passing, dtype, between) @ torch.cat([first, added], 3)
    starts = unflatten(_kept(given, carried[:, :, :, :-1]), -1, (dstate, headdim))
    starts = starts.permute(0, 3, 1, 4, 2, 5).flatten(4)  # b k g n (r p)
    read = unflatten(C @ starts, -1, (-1, headdim))
    out = inside + read * enter.unsqueeze(-1)
    if given.D is not None:
        D = unflatten(given.D.to(dtype), 0, (groups, 1, -1))
        out = out + x * (D.unsqueeze(-1) if given.D.dim() == 1 else D)
    out = out.transpose(2, 3).flatten(3, 4).flatten(1, 2)
    if is_padded:
        out = out[:, :seqlen]
    if given.z is not None:
        out = gate(out, given.z)
    state = unflatten(carried[:, :, :, -1], -1, (dstate, headdim))
    state = state.transpose(-1, -2).flatten(1, 2).contiguous()
    return out.to(given.x.dtype).contiguous(), state, varlen_states(given)


def _beside_x(given: Scan) -> Scan:
    """The same, for a trace that has to refuse what is of other sizes than x."""
    steps = {
        name: beside(name, getattr(given, name), given.x, (0, 0), (1, 1))
        for name in ("dt", "B", "C", "z", "seq_idx")
    }
    states = beside("initial_states", given.initial_states, given.x, (0, 0))
    return given._replace(initial_states=states, **steps)


def _chunk(given: Scan) -> int:
    """The steps of a chunk: where states are rounded, as the caller says."""
    seqlen = sizes(given.x)[1]
    if given.state_dtype is not None:
        size = given.chunk_size
    elif seqlen <= MANY_STEPS:
        size = CHUNK
    else:
        size = 1 << ((seqlen - 1).bit_length() + 1) // 2
    return size if is_traced() else max(1, min(size, seqlen))


def _decays(log: Tensor, dtype: torch.dtype, together: Tensor | None) -> Tensor:
    """``exp(log[i] - log[j])`` (..., i, j) for ``j <= i``, where they are ``together``; else 0."""
    places = torch.arange(log.shape[-1], device=log.device)
    visible = places.unsqueeze(-1) >= places
    if together is not None:
        visible = visible & together
    # Masked before exp: in the upper half the difference is positive.
    difference = log.unsqueeze(-1) - log.unsqueeze(-2)
    nothing = torch.full((), -math.inf, dtype=log.dtype, device=log.device)
    return torch.where(visible, difference, nothing).to(dtype).exp()


def _kept(given: Scan, states: Tensor) -> Tensor:
    """States as they are kept between chunks. Their gradient passes the rounding by."""
    if given.state_dtype is None:
        return states
    return states + (states.to(given.state_dtype).to(states.dtype) - states).detach()


def varlen_states(given: Scan) -> Tensor | None:
    """The state at the end of each sequence ``cu_seqlens[i]:cu_seqlens[i + 1]``, in a batch of 1.

    The first sequence starts from the initial states, the others from zero. No shape depends on
    where they end.
    """
    if given.cu_seqlens is None:
        return None
    with without_autocast(given.x.device):
        return _varlen_states(given, given.cu_seqlens)


def _varlen_states(given: Scan, cu_seqlens: Tensor) -> Tensor:
    steps = steps_taken(given)
    dtype = steps.dtype
    seqlen, groups = given.x.shape[1], sizes(given.B)[2]
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    # The sums before each step and after the last, (seqlen + 1, nheads): an end may be anywhere.
    log = functional.pad((steps[0] * finite(given.A.double())).cumsum(0), (0, 0, 1, 0))
    at_ends = log.index_select(0, ends)
    places = torch.arange(seqlen, device=ends.device)
    inside = (places >= starts.unsqueeze(-1)) & (places < ends.unsqueeze(-1))
    from_first = torch.ones_like(ends, dtype=torch.bool)
    if given.seq_idx is not None:
        passed = functional.pad(resets_before(given.seq_idx)[0], (1, 0))
        passed_at_ends = passed.index_select(0, ends)
        inside = inside & (passed[1:] == passed_at_ends.unsqueeze(-1))
        from_first = passed_at_ends == 0
    nothing = torch.full((), -math.inf, dtype=log.dtype, device=log.device)
    difference = at_ends.unsqueeze(1) - log[1:]
    weights = torch.where(inside.unsqueeze(-1), difference, nothing).to(dtype).exp()  # s t h
    B = given.B[0].to(dtype).repeat_interleave(sizes(given.x)[2] // groups, 1)  # t h n
    entering = (given.x[0].to(dtype) * steps[0].unsqueeze(-1)).permute(1, 2, 0)  # h p t
    # For each head and sequence, (p, t) by (t, n).
    weighted = weights.permute(2, 0, 1).unsqueeze(-1) * B.transpose(0, 1).unsqueeze(1)
    states = (entering.unsqueeze(1) @ weighted).transpose(0, 1)  # s h p n
    if given.initial_states is not None:
        is_first = torch.arange(ends.shape[0], device=ends.device) == 0
        decay = (at_ends - log.index_select(0, starts)).to(dtype).exp()
        reached = decay * (is_first & from_first).unsqueeze(-1)
        states = states + reached[:, :, None, None] * given.initial_states[0].to(dtype)
    return states.to(given.C.dtype)
