"""The causal convolution as a plain loop over time, in float64.

Every step looks its taps up one by one; nothing is vectorised over time and nothing is shared
with an implementation. Gradients are autograd's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    seq_idx: Tensor | None = None,
    initial_states: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """The output (batch, dim, seqlen) and the final states (batch, dim, width - 1)."""
    batch, dim, seqlen = x.shape
    width = weight.shape[1]
    x, weight = x.double(), weight.double()
    rows = []
    finals = []
    for b in range(batch):

        def value(t: int, b: int = b) -> Tensor:
            if t >= 0:
                return x[b, :, t]
            if initial_states is None:
                return x.new_zeros(dim)
            return initial_states[b, :, width - 1 + t].double()

        def owner(t: int, b: int = b) -> int:
            return 0 if seq_idx is None else int(seq_idx[b, max(t, 0)])

        steps = []
        for t in range(seqlen):
            if owner(t) < 0:
                steps.append(x.new_zeros(dim))
                continue
            total = x.new_zeros(dim) if bias is None else bias.double()
            for lag in range(width):
                if owner(t - lag) == owner(t):
                    total = total + weight[:, width - 1 - lag] * value(t - lag)
            steps.append(total / (1 + torch.exp(-total)) if silu else total)
        rows.append(torch.stack(steps, dim=1) if steps else x[b])
        last = range(seqlen - width + 1, seqlen)
        finals.append(torch.stack([value(t) for t in last], dim=1))
    return torch.stack(rows), torch.stack(finals)


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    silu: bool = False,
    cache_seqlens: Tensor | None = None,
    conv_state_indices: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The output of the steps in ``x`` (batch, dim, seqlen) and the state after them."""
    batch, _, seqlen = x.shape
    length, width = conv_state.shape[2], weight.shape[1]
    after = conv_state.double().clone()
    out = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
    for b in range(batch):
        entry = b if conv_state_indices is None else int(conv_state_indices[b])
        if entry < 0:
            continue
        past = list(after[entry].unbind(1))
        if cache_seqlens is not None:
            begin = int(cache_seqlens[b])
            past = [after[entry, :, (begin - lag) % length] for lag in range(length, 0, -1)]
        inputs = torch.stack([*past, *x[b].double().unbind(1)], dim=1)
        whole, _ = convolve(inputs[None], weight, bias, silu=silu)
        # The steps before have outputs too, of which the first lack their past.
        assert length >= width - 1
        out[b] = whole[0, :, length:]
        for step in range(seqlen):
            if cache_seqlens is None:
                after[entry] = torch.roll(after[entry], -1, dims=1)
                place = length - 1
            else:
                place = (int(cache_seqlens[b]) + step) % length
            after[entry, :, place] = x[b, :, step].double()
    return out, after
