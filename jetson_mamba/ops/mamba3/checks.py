"""The arguments of the functions of Mamba-3: what fits together."""

from __future__ import annotations

from typing import Any, Mapping

import torch
from torch import Tensor

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER = (torch.int32, torch.int64)


def check_tensors(tensors: Mapping[str, Any], optional: tuple[str, ...] = ()) -> None:
    """Raise unless all are floating tensors of one device; those ``optional`` may be None."""
    device: torch.device | None = None
    for name, tensor in tensors.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
        if tensor.dtype not in FLOATING:
            raise TypeError(
                f"{name}: expected float16, bfloat16, float32 or float64, found {tensor.dtype}"
            )
        device = device or tensor.device
        if tensor.device != device:
            first = next(iter(tensors))
            raise ValueError(
                f"{name}: expected the device of {first}, {device}, found {tensor.device}"
            )


def check_shape(name: str, tensor: Tensor | None, sizes: Mapping[str, int]) -> None:
    """Raise unless a tensor, if it is given, has these sizes."""
    if tensor is not None and tuple(tensor.shape) != tuple(sizes.values()):
        wanted = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        raise ValueError(f"{name}: expected shape ({wanted}), found {tuple(tensor.shape)}")


def dims(name: str, tensor: Tensor, axes: tuple[str, ...]) -> tuple[int, ...]:
    """The sizes of a tensor, which must have these axes."""
    if tensor.dim() != len(axes):
        raise ValueError(f"{name}: expected shape ({', '.join(axes)}), found {tuple(tensor.shape)}")
    return tuple(tensor.shape)


def check_heads(nheads: int, ngroups: int, dstate: int, angles: int) -> None:
    """Raise unless groups share the heads evenly, and there are pairs enough to turn."""
    if ngroups < 1 or nheads % ngroups:
        raise ValueError(f"Q: expected heads that divide those of V, {nheads}, found {ngroups}")
    if dstate % 2:
        raise ValueError(f"Q: expected an even last axis, found {dstate}")
    if angles > dstate // 2:
        raise ValueError(f"Angles: expected at most {dstate // 2}, found {angles}")


def boundaries(cu_seqlens: Tensor | None, batch: int, seqlen: int) -> tuple[int, ...] | None:
    """The boundaries of packed sequences in plain numbers; None where none are given."""
    if seqlen < 1:
        raise ValueError(f"Q: expected a seqlen of at least 1, found {seqlen}")
    if cu_seqlens is None:
        return None
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in INTEGER:
        found = getattr(cu_seqlens, "dtype", type(cu_seqlens).__name__)
        raise TypeError(f"cu_seqlens: expected an integer tensor, found {found}")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens: expected shape (sequences + 1,), found {tuple(cu_seqlens.shape)}"
        )
    if batch != 1:
        raise ValueError(f"Q: expected batch 1 with cu_seqlens, found {batch}")
    ends = tuple(cu_seqlens.tolist())
    if ends[0] < 0 or ends[-1] > seqlen or any(a > b for a, b in zip(ends, ends[1:])):
        raise ValueError(
            f"cu_seqlens: expected boundaries that do not fall, from 0 to seqlen={seqlen}, "
            f"found {list(ends)}"
        )
    if ends[0] == ends[-1]:
        raise ValueError("cu_seqlens: expected at least one step, found none")
    return ends
