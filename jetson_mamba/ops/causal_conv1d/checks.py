"""Checks of the convolution's arguments."""

from __future__ import annotations

import torch
from torch import Tensor

from jetson_mamba.dispatch.arguments import FLOATING, check_all, check_device, check_dtype

_INT32 = (torch.int32,)


def is_silu(activation: str | None) -> bool:
    """Whether an activation is silu; ValueError for what is no activation."""
    if activation is None:
        return False
    if activation in ("silu", "swish"):
        return True
    raise ValueError(f"activation: expected None, 'silu' or 'swish', found {activation!r}")


def check(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
) -> None:
    """Raise unless the arguments fit each other."""
    if getattr(x, "dtype", None) not in FLOATING:
        check_dtype("x", x)
    if getattr(weight, "dtype", None) not in FLOATING:
        check_dtype("weight", weight)
    # Asked for once: to ask a tensor costs as much as all that is done with the answer.
    shape, taps, device = x.shape, weight.shape, x.device
    if len(shape) != 3:
        raise ValueError(f"x: expected shape (batch, dim, seqlen), found {tuple(shape)}")
    batch, dim, seqlen = shape
    if len(taps) != 2 or taps[0] != dim or taps[1] < 2:
        raise ValueError(
            f"weight: expected shape (dim, width) = ({dim}, 2 or more), found {tuple(taps)}"
        )
    if weight.device != device:
        check_device("weight", weight, device, "x")
    if bias is not None:
        check_all("bias", bias, (dim,), "(dim,)", FLOATING, device, "x")
    if seq_idx is not None:
        check_all("seq_idx", seq_idx, (batch, seqlen), "(batch, seqlen)", _INT32, device, "x")
    if initial_states is not None:
        check_states("initial_states", initial_states, x, weight)


def check_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dout: Tensor,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    dfinal_states: Tensor | None,
    dx: Tensor | None,
) -> None:
    """Raise unless the arguments of a backward pass fit each other."""
    check(x, weight, bias, seq_idx, initial_states)
    check_all("dout", dout, tuple(x.shape), "(batch, dim, seqlen) of x", (x.dtype,), x.device, "x")
    if dx is not None:
        check_all("dx", dx, tuple(x.shape), "(batch, dim, seqlen) of x", (x.dtype,), x.device, "x")
    if dfinal_states is not None:
        check_states("dfinal_states", dfinal_states, x, weight)


def check_update(
    steps: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    cache_seqlens: Tensor | None,
    conv_state_indices: Tensor | None,
) -> None:
    """Raise unless the arguments of further steps fit each other."""
    check(steps, weight, bias, None, None)
    batch, dim, _ = steps.shape
    least = weight.shape[1] - 1
    check_dtype("conv_state", conv_state)
    found = conv_state.shape
    entries = found[0] if conv_state_indices is not None and found else batch
    shape = (entries, dim, max(found[-1], least) if found else least)
    meaning = f"(batch or entries, dim, {least} or more)"
    check_all("conv_state", conv_state, shape, meaning, FLOATING, steps.device, "x")
    if cache_seqlens is not None:
        check_all("cache_seqlens", cache_seqlens, (batch,), "(batch,)", _INT32, steps.device, "x")
    if conv_state_indices is not None:
        of = "conv_state_indices"
        check_all(of, conv_state_indices, (batch,), "(batch,)", _INT32, steps.device, "x")


def check_states(name: str, states: Tensor, x: Tensor, weight: Tensor) -> None:
    """Raise unless states before or after the inputs are of their shape."""
    shape = (x.shape[0], x.shape[1], weight.shape[1] - 1)
    check_all(name, states, shape, "(batch, dim, width - 1)", FLOATING, x.device, "x")
