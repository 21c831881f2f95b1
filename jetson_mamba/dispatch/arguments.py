"""Checks of an op's arguments: an error names one, with what was found beside what fits."""

from __future__ import annotations

from typing import Any, Collection, Mapping

import torch
from torch import Tensor

from .tracing import sizes, tracing_state

FLOATING = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
COMPLEX = frozenset((torch.complex64, torch.complex128))
ANY = FLOATING | COMPLEX
INTEGER = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64))
_WORDS = (
    (FLOATING, "float16, bfloat16, float32 or float64"),
    (COMPLEX, "complex64 or complex128"),
    (ANY, "a floating or a complex dtype"),
    (INTEGER, "an integer dtype"),
)


def check_dtype(
    name: str, tensor: Any, dtypes: Collection[torch.dtype] = FLOATING, words: str | None = None
) -> None:
    """Raise TypeError unless it is a tensor of one of the dtypes, in ``words`` if there are any."""
    # Nothing but a tensor has one of these: to pass costs no more than this look.
    if getattr(tensor, "dtype", None) in dtypes:
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
    known = (each for of, each in _WORDS if of == dtypes)
    words = words or next(known, " or ".join(map(str, dtypes)))
    raise TypeError(f"{name}: expected {words}, found {tensor.dtype}")


def check_device(name: str, tensor: Tensor, device: torch.device, of: str) -> None:
    """Raise ValueError unless it is on the device, which is that of the argument ``of``."""
    if tensor.device != device:
        raise ValueError(f"{name}: expected the device of {of}, {device}, found {tensor.device}")


def check_tensors(
    tensors: Mapping[str, Any],
    optional: Collection[str] = (),
    dtypes: Mapping[str, Collection[torch.dtype]] | None = None,
) -> None:
    """Raise unless all are tensors of one device, floating but for those in ``dtypes``.

    Those ``optional`` may be None.
    """
    first, device = "", None
    for name, tensor in tensors.items():
        if tensor is None and name in optional:
            continue
        accepted = FLOATING if dtypes is None else dtypes.get(name, FLOATING)
        if getattr(tensor, "dtype", None) not in accepted:
            check_dtype(name, tensor, accepted)
        if device is None:
            first, device = name, tensor.device
        elif tensor.device != device:
            check_device(name, tensor, device, first)


def check_all(
    name: str,
    tensor: Any,
    shape: tuple[int, ...],
    meaning: str,
    dtypes: Collection[torch.dtype],
    device: torch.device,
    of: str,
) -> None:
    """Raise unless it is a tensor of the shape, of one of the dtypes, on the device of ``of``.

    ``meaning`` says what the sizes of the shape are.
    """
    # Each is asked for once: to ask a tensor costs as much as all that is done with the answer.
    if getattr(tensor, "dtype", None) not in dtypes:
        check_dtype(name, tensor, dtypes)
    found = tensor.shape
    if found != shape:
        raise ValueError(f"{name}: expected shape {meaning} = {shape}, found {tuple(found)}")
    if tensor.device != device:
        check_device(name, tensor, device, of)


def dims(name: str, tensor: Tensor, axes: tuple[str, ...]) -> tuple[int, ...]:
    """The sizes of a tensor, which must have these axes."""
    if tensor.dim() != len(axes):
        raise ValueError(f"{name}: expected shape ({', '.join(axes)}), found {tuple(tensor.shape)}")
    return tuple(tensor.shape)


def check_shape(name: str, tensor: Tensor | None, wanted: Mapping[str, int]) -> None:
    """Raise ValueError unless a tensor, if it is given, has these sizes."""
    if tensor is not None and tuple(tensor.shape) != tuple(wanted.values()):
        axes = ", ".join(f"{axis}={size}" for axis, size in wanted.items())
        raise ValueError(f"{name}: expected shape ({axes}), found {tuple(tensor.shape)}")


def check_alike(name: str, tensor: Tensor | None, shape: tuple[int, ...], meaning: str) -> None:
    """Raise ValueError unless a tensor, if given, has a shape; also while a trace is taken."""
    if tensor is None:
        return
    # Not sizes of it without a trace: small norms feel a call.
    found = tensor.shape if tracing_state() is None else sizes(tensor)
    if found != shape:
        raise ValueError(f"{name}: expected {meaning}, {shape}, found {sizes(tensor)}")


def check_groups(ngroups: int, nheads: int, what: str) -> None:
    """Raise ValueError unless the groups share the heads evenly."""
    if ngroups < 1 or nheads % ngroups:
        raise ValueError(f"{what} expected a divisor of nheads={nheads}, found {ngroups}")


def check_steps(name: str, seqlen: int) -> None:
    """Raise ValueError unless there is a step."""
    if seqlen < 1:
        raise ValueError(f"{name}: expected a seqlen of at least 1, found {seqlen}")


def check_boundaries(cu_seqlens: Any, name: str, batch: int, beside: str) -> None:
    """Raise unless cu_seqlens may be the boundaries of sequences in a batch of 1."""
    check_dtype("cu_seqlens", cu_seqlens, INTEGER)
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"cu_seqlens: expected shape (sequences + 1,), found {tuple(cu_seqlens.shape)}"
        )
    if batch != 1:
        raise ValueError(f"{name}: expected batch 1 with {beside}, found {batch}")


def boundaries(cu_seqlens: Tensor, seqlen: int) -> tuple[int, ...]:
    """The boundaries in plain numbers; raises ValueError where they are no sequences'."""
    ends = tuple(cu_seqlens.tolist())
    if ends[0] < 0 or ends[-1] > seqlen or any(a > b for a, b in zip(ends, ends[1:])):
        raise ValueError(
            f"cu_seqlens: expected boundaries that do not fall, from 0 to seqlen={seqlen}, "
            f"found {list(ends)}"
        )
    return ends
