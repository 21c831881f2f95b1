"""The functions by which mamba-ssm calls the convolution from 2.2.5 on; none records a graph."""

from __future__ import annotations

import torch
from torch import Tensor

from jetson_mamba import ops

__all__ = [
    "causal_conv1d_bwd_function",
    "causal_conv1d_fwd_function",
    "causal_conv1d_update_function",
]


@torch.no_grad()
def causal_conv1d_fwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu_activation: bool,
) -> Tensor:
    """The output of ``causal_conv1d_fn``; ``final_states_out`` is written where it is given."""
    out: Tensor = ops.causal_conv1d_fn(
        x,
        weight,
        bias,
        seq_idx=seq_idx,
        initial_states=initial_states,
        final_states_out=final_states_out,
        activation="silu" if silu_activation else None,
    )
    return out


@torch.no_grad()
def causal_conv1d_bwd_function(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
    return_dinitial_states: bool,
    silu_activation: bool,
) -> tuple[Tensor | None, ...]:
    """``dx`` (that which is given, if one is), ``dweight``, ``dbias``, ``dinitial_states``."""
    return ops.causal_conv1d_bwd(
        x,
        weight,
        bias,
        dout,
        seq_idx=seq_idx,
        initial_states=initial_states,
        dfinal_states=dfinal_states,
        dx=dx,
        return_dinitial_states=return_dinitial_states,
        activation="silu" if silu_activation else None,
    )


@torch.no_grad()
def causal_conv1d_update_function(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu_activation: bool,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> Tensor:
    """The output of ``causal_conv1d_update``; ``conv_state`` is written."""
    return ops.causal_conv1d_update(
        x,
        conv_state,
        weight,
        bias,
        activation="silu" if silu_activation else None,
        cache_seqlens=cache_seqlens,
        conv_state_indices=conv_state_indices,
    )
