"""What the CUDA kernels of the scan are told of its arguments."""

from __future__ import annotations

import struct
from typing import Any

import torch
from torch import Tensor

from jetson_mamba.kernels.tensors import VECTOR_BYTES, packed
from jetson_mamba.kernels.tensors import rows as packed_rows

from .contract import SCAN, Scan

# The numbers that the kernels know the dtypes of small tensors by.
KINDS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
SOFTPLUS = 1 << 8


def prepared(scan: Scan) -> Scan:
    """The scan with tensors as the kernels read them; itself where they are.

    x, B, C and z have one dtype and rows that are packed; the small ones are packed, the initial
    states in float32 and seq_idx in int32.
    """
    x, B, C, z = scan.x, scan.B, scan.C, scan.z
    first, seq_idx = scan.initial_states, scan.seq_idx
    dtype = x.dtype
    if B.dtype != dtype or C.dtype != dtype or (z is not None and z.dtype != dtype):
        dtype = torch.float32
    return scan._replace(
        x=rows(x, dtype),
        A=scan.A.contiguous(),
        B=rows(B, dtype),
        C=rows(C, dtype),
        D=packed(scan.D),
        z=None if z is None else rows(z, dtype),
        dt_bias=packed(scan.dt_bias),
        initial_states=None if first is None else first.float().contiguous(),
        seq_idx=None if seq_idx is None else seq_idx.to(torch.int32),
        cu_seqlens=None,
    )


def rows(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor`` in a dtype, with its last dimension packed: a copy only where it is not."""
    return packed_rows(tensor if tensor.dtype == dtype else tensor.to(dtype))


def aligned(*tensors: Tensor) -> bool:
    """Whether every row of these is whole vectors, if the first begins at one."""
    for tensor in tensors:
        size = tensor.element_size()
        combined = tensor.shape[-1] * size
        for length, stride in zip(tensor.shape[:-1], tensor.stride()[:-1]):
            if length > 1:
                combined |= stride * size
        if combined % VECTOR_BYTES:
            return False
    return True


def likeness(scan: Scan) -> tuple[Any, ...]:
    """Dtypes, shapes, strides and options of a scan: what its plan depends on beside alignment."""
    result: list[Any] = [scan.dt_softplus, scan.dt_limit]
    for tensor in SCAN.tensors(scan):
        result += (None,) if tensor is None else (tensor.shape, tensor.stride(), tensor.dtype)
    return tuple(result)


def options_of(scan: Scan) -> int:
    """The kinds of the small tensors and the flags, as ``Options`` of the kernels has them."""
    bits = KINDS[scan.dt.dtype] | KINDS[scan.A.dtype] << 2
    if scan.dt_bias is not None:
        bits |= KINDS[scan.dt_bias.dtype] << 4
    if scan.D is not None:
        bits |= KINDS[scan.D.dtype] << 6
    return bits | (SOFTPLUS if scan.dt_softplus else 0)


def limits_of(scan: Scan) -> tuple[int, int]:
    """The bits of the limits as doubles: all parameters of a kernel are integers."""
    low, high = struct.unpack("2q", struct.pack("2d", *scan.dt_limit))
    return low, high
