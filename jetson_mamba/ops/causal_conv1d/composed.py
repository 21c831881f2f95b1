"""The convolution as plain tensor operations, which torch traces, transforms and differentiates.

Nothing is written in place and no address is taken, so any of torch's transforms applies, over
any of the arguments. ``contract`` says what is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu as apply_silu

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.tracing import fixed, sizes

from .contract import Gradients


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The output and the final states."""
    x, weight = fixed(x), fixed(weight)
    seq_idx, initial_states = fixed(seq_idx), fixed(initial_states)
    (batch, dim, seqlen), width = sizes(x), sizes(weight)[1]
    if initial_states is None:
        initial_states = x.new_zeros((batch, dim, width - 1))
    inputs = torch.cat((initial_states, x), -1)
    final_states = inputs[..., seqlen:]

    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    wide, taps = inputs.to(dtype), weight.to(dtype)
    origins = None if seq_idx is None else _origins(seq_idx, width)
    z = None if bias is None else bias.to(dtype).unsqueeze(-1)
    for column in range(width):
        past = wide[..., column : column + seqlen]
        if seq_idx is not None and origins is not None:
            foreign = origins[:, column : column + seqlen] != seq_idx
            past = past.masked_fill(foreign.unsqueeze(1), 0)
        tap = past * taps[:, column].unsqueeze(-1)
        z = tap if z is None else z + tap
    assert z is not None
    if seq_idx is not None:
        # Before the activation, which leaves zero at zero: no gradient meets what stood there.
        z = z.masked_fill((seq_idx < 0).unsqueeze(1), 0)
    out = (apply_silu(z) if silu else z).to(x.dtype)
    if x.stride(1) == 1 and x.stride(2) != 1:
        # With channels last, as what a kernel writes: a caller may view it in other shapes.
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
    return out, final_states


def backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    return_dinitial_states: bool,
    silu: bool,
) -> Gradients:
    """The gradients, themselves differentiable; as :class:`~.contract.Backward` says."""
    if return_dinitial_states and initial_states is None:
        initial_states = x.new_zeros((*sizes(x)[:2], sizes(weight)[1] - 1))
    arguments = (x, weight, bias, seq_idx, initial_states, silu)
    needed = (True, True, bias is not None, False, return_dinitial_states, False)
    found = twice.gradients(forward, arguments, needed, (dout, dfinal_states))
    dx, dweight, dbias, _, dinitial_states, _ = found
    assert dx is not None and dweight is not None
    return dx, dweight, dbias, dinitial_states


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The output of further steps, and what ``conv_state`` is after them."""
    x, conv_state = fixed(x), fixed(conv_state)
    seqlen, length, before = sizes(x)[2], sizes(conv_state)[2], sizes(weight)[1] - 1
    state = conv_state
    if conv_state_indices is not None:
        state = conv_state.index_select(0, conv_state_indices.clamp(min=0))
    # Only the last inputs fit.
    kept = min(seqlen, length)
    latest = x[..., seqlen - kept :]
    if cache_seqlens is None:
        history = state[..., length - before :]
        state = torch.cat((state[..., kept:], latest), -1)
    else:
        history = state.gather(2, _ring(x, cache_seqlens, -before, 0, length))
        state = state.scatter(2, _ring(x, cache_seqlens, seqlen - kept, seqlen, length), latest)
    out, _ = forward(x, weight, bias, None, history, silu)
    if conv_state_indices is None:
        return out, state
    used = conv_state_indices >= 0
    # Rows of padding go to an entry beyond the last, which is left out again.
    entries = sizes(conv_state)[0]
    places = torch.where(used, conv_state_indices, entries)
    state = torch.cat((conv_state, conv_state[:1])).index_copy(0, places.long(), state)[:entries]
    return out.masked_fill(~used[:, None, None], 0), state


def _origins(seq_idx: Tensor, width: int) -> Tensor:
    """The sequence of each input, those before the first included: they are of its sequence."""
    return torch.cat((seq_idx[:, :1].expand(-1, width - 1), seq_idx), 1)


def _ring(x: Tensor, cache_seqlens: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Places in a ring of the steps from ``start`` to ``stop``: (batch, dim, stop - start)."""
    steps = torch.arange(start, stop, device=x.device)
    places = (cache_seqlens.unsqueeze(1) + steps).remainder(length)
    return places.unsqueeze(1).expand(-1, sizes(x)[1], -1)
