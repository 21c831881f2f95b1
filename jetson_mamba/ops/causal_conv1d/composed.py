"""The convolution as plain tensor operations, on which every transform of torch works.

Nothing is written in place and no address is taken, so any of torch's transforms applies, over
any of the arguments. ``contract`` says what is computed.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.tracing import beside, fixed, sizes

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
    weight = fixed(weight, 1)
    before = sizes(weight)[1] - 1
    if initial_states is None:
        inputs = functional.pad(x, (before, 0))
    else:
        states = beside("initial_states", fixed(initial_states, 2), x, (0, 0))
        inputs = torch.cat((states, x), -1)
    final_states = inputs[..., x.shape[2] :]

    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    wide, taps = inputs.to(dtype), weight.to(dtype)
    if seq_idx is not None:
        seq_idx = beside("seq_idx", seq_idx, x, (0, 0), (1, 2))
        seq_idx = seq_idx.expand(x.shape[0], -1)  # Which ONNX refuses of a constant for others.
    origins = None if seq_idx is None else _origins(seq_idx, before)
    z = None if bias is None else bias.to(dtype).unsqueeze(-1)
    for column in range(before + 1):
        # As long as x, whatever length that has.
        columns = slice(column, column - before or None)
        past = wide[..., columns]
        if seq_idx is not None and origins is not None:
            foreign = origins[:, columns] != seq_idx
            past = past.masked_fill(foreign.unsqueeze(1), 0)
        tap = past * taps[:, column].unsqueeze(-1)
        z = tap if z is None else z + tap
    assert z is not None
    if seq_idx is not None:
        # Before the activation, which leaves zero at zero: no gradient meets what stood there.
        z = z.masked_fill((seq_idx < 0).unsqueeze(1), 0)
    out = (functional.silu(z) if silu else z).to(x.dtype)
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
        initial_states = x.new_zeros((*x.shape[:2], sizes(weight)[1] - 1))
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
    before = sizes(weight)[1] - 1
    cache_seqlens = beside("cache_seqlens", cache_seqlens, x, (0, 0))
    if conv_state_indices is None:
        state = beside("conv_state", conv_state, x, (0, 0))
    else:
        conv_state_indices = beside("conv_state_indices", conv_state_indices, x, (0, 0))
        state = conv_state.index_select(0, conv_state_indices.clamp(min=0))
    if cache_seqlens is None:
        history = state[..., state.shape[2] - before :]
        state = torch.cat((state, x), -1)[..., x.shape[2] :]
    else:
        x, state = fixed(x, 2), fixed(state, 2)
        seqlen, length = sizes(x)[2], sizes(state)[2]
        # Only the last inputs fit.
        first = max(0, seqlen - length)
        history = state.gather(2, _ring(x, cache_seqlens, -before, 0, length))
        places = _ring(x, cache_seqlens, first, seqlen, length)
        state = state.scatter(2, places, x[..., first:])
    out, _ = forward(x, weight, bias, None, history, silu)
    if conv_state_indices is None:
        return out, state
    used = conv_state_indices >= 0
    # Rows of padding go to an entry beyond the last, which is left out again.
    entries = conv_state.shape[0]
    places = torch.where(used, conv_state_indices, entries)
    state = torch.cat((conv_state, conv_state[:1])).index_copy(0, places.long(), state)[:entries]
    return out.masked_fill(~used[:, None, None], 0), state


def _origins(seq_idx: Tensor, before: int) -> Tensor:
    """The sequence of each input, those before the first included: they are of its sequence."""
    return torch.cat((seq_idx[:, :1].expand(-1, before), seq_idx), 1)


def _ring(x: Tensor, cache_seqlens: Tensor, start: int, stop: int, length: int) -> Tensor:
    """Places in a ring of the steps from ``start`` to ``stop``: (batch, dim, stop - start)."""
    steps = torch.arange(start, stop, device=x.device)
    places = (cache_seqlens.unsqueeze(1) + steps).remainder(length)
    return places.unsqueeze(1).expand(-1, x.shape[1], -1)
