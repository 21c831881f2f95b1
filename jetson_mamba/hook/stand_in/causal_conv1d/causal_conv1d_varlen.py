"""The convolution's states after each of several sequences that are packed into one."""

from __future__ import annotations

import torch
from torch import Tensor


def causal_conv1d_varlen_states(x: Tensor, cu_seqlens: Tensor, state_len: int) -> Tensor:
    """The last ``state_len`` inputs of each sequence, with zeros before a shorter one.

    ``x`` is (total_tokens, dim); ``cu_seqlens``, (sequences + 1,), holds where each sequence
    begins and the last ends. Returns (sequences, dim, state_len) in the dtype of x.
    """
    starts, ends = cu_seqlens[:-1, None], cu_seqlens[1:, None]
    steps = ends - state_len + torch.arange(state_len, device=x.device)
    inside = (steps >= starts).unsqueeze(-1)
    return (x[steps.clamp(min=0)] * inside).transpose(1, 2)


# What upstream writes out as a reference beside its kernel.
causal_conv1d_varlen_states_ref = causal_conv1d_varlen_states
