"""Checks of the convolution's arguments."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch import Tensor
from torch.nn import Parameter

DTYPES = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
_REAL = "float16, bfloat16, float32 or float64"


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
    # What has none of these dtypes is looked at again, to be told by its right name.
    if getattr(x, "dtype", None) not in DTYPES:
        _refuse("x", x)
    if getattr(weight, "dtype", None) not in DTYPES:
        _refuse("weight", weight)
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
        raise ValueError(f"weight: expected device {device}, as x, found {weight.device}")
    if bias is not None:
        expect("bias", bias, (dim,), "(dim,)", DTYPES, device)
    if seq_idx is not None:
        expect("seq_idx", seq_idx, (batch, seqlen), "(batch, seqlen)", torch.int32, device)
    if initial_states is not None:
        check_states("initial_states", initial_states, x, weight)


def _refuse(name: str, tensor: object) -> NoReturn:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    raise TypeError(f"{name}: expected {_REAL}, found {tensor.dtype}")


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
    expect("dout", dout, tuple(x.shape), "(batch, dim, seqlen) of x", x.dtype, x.device)
    if dx is not None:
        expect("dx", dx, tuple(x.shape), "(batch, dim, seqlen) of x", x.dtype, x.device)
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
    if not isinstance(conv_state, Tensor):
        raise TypeError(f"conv_state: expected a tensor, found {type(conv_state).__name__}")
    found = conv_state.shape
    entries = found[0] if conv_state_indices is not None and found else batch
    shape = (entries, dim, max(found[-1], least) if found else least)
    meaning = f"(batch or entries, dim, {least} or more)"
    expect("conv_state", conv_state, shape, meaning, DTYPES, steps.device)
    if cache_seqlens is not None:
        expect("cache_seqlens", cache_seqlens, (batch,), "(batch,)", torch.int32, steps.device)
    if conv_state_indices is not None:
        of = "conv_state_indices"
        expect(of, conv_state_indices, (batch,), "(batch,)", torch.int32, steps.device)


def check_states(name: str, states: Tensor, x: Tensor, weight: Tensor) -> None:
    """Raise unless states before or after the inputs are of their shape."""
    shape = (x.shape[0], x.shape[1], weight.shape[1] - 1)
    expect(name, states, shape, "(batch, dim, width - 1)", DTYPES, x.device)


def expect(
    name: str,
    tensor: Tensor,
    shape: tuple[int, ...],
    meaning: str,
    dtype: torch.dtype | frozenset[torch.dtype],
    device: torch.device,
) -> None:
    """Raise unless a tensor is of the shape, of the dtype or one of them, and on the device."""
    if type(tensor) is not Parameter and not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    found = tensor.shape
    if found != shape:
        raise ValueError(f"{name}: expected shape {meaning} = {shape}, found {tuple(found)}")
    of = tensor.dtype
    if dtype is DTYPES:
        if of not in DTYPES:
            raise TypeError(f"{name}: expected {_REAL}, found {of}")
    elif of != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, found {of}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected device {device}, as x, found {tensor.device}")
