"""The convolution as operations of a graph in which no size of the input is fixed.

An exported program that is decomposed holds these in place of the operators: see
``dispatch/operators.py``. ``composed`` computes the same, for graphs of one size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from . import composed


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    return_final_states: bool,
    silu: bool,
) -> tuple[Tensor, Tensor]:
    """The output and the final states, which are empty if they are not asked for."""
    if seq_idx is not None:
        out, final_states = composed.forward(x, weight, bias, seq_idx, initial_states, silu)
        return out, final_states if return_final_states else x.new_empty(0)
    dim, width = weight.shape
    if initial_states is None:
        inputs = functional.pad(x, (width - 1, 0))
    else:
        inputs = torch.cat((initial_states, x), -1)
    dtype = torch.promote_types(torch.promote_types(x.dtype, weight.dtype), torch.float32)
    out = functional.conv1d(
        inputs.to(dtype),
        weight.to(dtype).unsqueeze(1),
        None if bias is None else bias.to(dtype),
        groups=dim,
    )
    if silu:
        out = functional.silu(out)
    final_states = inputs[..., x.shape[2] :] if return_final_states else x.new_empty(0)
    return out.to(x.dtype), final_states


def update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
    silu: bool,
) -> Tensor:
    """The output of further steps; ``conv_state`` is written."""
    out, state = composed.update(
        x, conv_state, weight, bias, cache_seqlens, conv_state_indices, silu
    )
    conv_state.copy_(state)
    return out
