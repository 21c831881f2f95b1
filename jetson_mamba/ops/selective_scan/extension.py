"""The selective scan of the compiled module ``selective_scan_cuda``, called directly.

The module takes float32, float16 and bfloat16, at most 256 states, and rows whose steps lie next
to each other. It does not look at what its vectorised loads need besides: rows of whole blocks
are read 16 bytes at a time, and one that begins elsewhere ends in a misaligned address, which
leaves the device unusable. So rows are made good before the call.
"""

from __future__ import annotations

from typing import Any, Callable, Iterator, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.compiled import compiled_module
from jetson_mamba.errors import Unavailable

from .contract import SCAN, Case, Gradients, Implementation, Returning, Scan, Scanned, upstream_rows

MODULE = "selective_scan_cuda"
MAX_DSTATE = 256
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LOAD_BYTES = 16
# The shortest row that is a whole number of the kernels' blocks.
BLOCK_STEPS = 128
# The axis of channels (of groups, for dC) in each field of Gradients.
GRADIENT_AXES = (1, 1, 0, 0, 1, 0, 0, 1, 1)


def load(case: Case) -> Implementation:
    """The extension's two functions, or ``Unavailable`` where it cannot serve ``case``.

    A module that is there but cannot be loaded (it was built for another torch) raises its own
    ``ImportError``; one that has nothing for the device says so at the trial.
    """
    if case.dtype not in DTYPES:
        raise Unavailable(f"{MODULE} does not take {case.dtype}")
    if case.dstate > MAX_DSTATE:
        raise Unavailable(f"{MODULE} takes at most {MAX_DSTATE} states, found {case.dstate}")
    module = compiled_module(MODULE)
    calls = _Calls(module.fwd, module.bwd)
    return Implementation(calls.forward, calls.backward, calls.output, upstream_rows)


class _Calls:
    """The two functions of a backend over the two of the extension."""

    def __init__(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> None:
        self._fwd = fwd
        self._bwd = bwd

    @torch.no_grad()
    def forward(self, scan: Scan) -> Scanned:
        if _groups_of_c_alone(scan):
            parts = [self.forward(_part(scan, *place)) for place in _by_group(scan)]
            return Scanned(*(_joined(part, 1) for part in zip(*parts)))
        out, x, *rest = self._fwd(*_good(scan))
        return Scanned(out, x, rest[0] if scan.z is not None else None)

    def output(self, scan: Scan) -> Tensor:
        return self.forward(scan).output

    @torch.no_grad()
    def backward(self, scan: Scan, returning: Returning) -> Gradients:
        dout, x, out, dz, recompute_out_z = returning
        if _groups_of_c_alone(scan):
            grads = [
                self.backward(
                    _part(scan, channels, group),
                    Returning(
                        dout[:, channels],
                        _rows_of(x, channels),
                        _rows_of(out, channels),
                        _rows_of(dz, channels),
                        recompute_out_z,
                    ),
                )
                for channels, group in _by_group(scan)
            ]
            joined = Gradients(*map(_joined, zip(*grads), GRADIENT_AXES))
            return joined if dz is None else joined._replace(dz=dz)
        if x is None or x.shape[2] != scan.chunks:
            x = self.forward(scan._replace(D=None, z=None)).x if scan.chunks > 1 else None
        given = dz if dz is not None and _is_good(dz) else None
        found = self._bwd(
            *SCAN.tensors(_good(scan)),
            _rows(dout),
            None if x is None else x.contiguous(),
            None if out is None else _rows(out),
            given,
            scan.delta_softplus,
            recompute_out_z,
        )
        du, ddelta, dA, dB, dC, dD, ddelta_bias, *rest = found
        gate = rest[0] if scan.z is not None else None
        if gate is not None and dz is not None and given is None:
            gate = dz.copy_(gate)
        out_z = rest[1] if scan.z is not None and recompute_out_z else None
        return Gradients(du, ddelta, dA, dB, dC, dD, ddelta_bias, gate, out_z)


def _is_good(rows: Tensor) -> bool:
    """Whether the extension can read and write these rows where they lie."""
    steps = rows.shape[-1]
    if steps > 1 and rows.stride(-1) != 1:
        return False
    if steps % BLOCK_STEPS:
        return True
    size = rows.element_size()
    return all(
        place % LOAD_BYTES == 0
        for place in (rows.data_ptr(), *(size * stride for stride in rows.stride()[:-1]))
    )


def _rows(rows: Tensor) -> Tensor:
    return rows if _is_good(rows) else rows.clone(memory_format=torch.contiguous_format)


def _good(scan: Scan) -> Scan:
    """The scan with the strides that the extension takes; constant B and C may have any."""
    return scan._replace(
        u=_rows(scan.u),
        delta=_rows(scan.delta),
        B=_rows(scan.B) if scan.B.dim() == 4 else scan.B,
        C=_rows(scan.C) if scan.C.dim() == 4 else scan.C,
        D=None if scan.D is None else scan.D.contiguous(),
        z=None if scan.z is None else _rows(scan.z),
        delta_bias=None if scan.delta_bias is None else scan.delta_bias.contiguous(),
    )


def _groups_of_c_alone(scan: Scan) -> bool:
    """The extension reads the number of groups from B, so constant B allows one only."""
    return scan.B.dim() == 2 and scan.groups > 1


def _by_group(scan: Scan) -> Iterator[tuple[slice, slice]]:
    """Each group's channels, and its place in C."""
    channels = scan.u.shape[1] // scan.groups
    for group in range(scan.groups):
        yield slice(group * channels, (group + 1) * channels), slice(group, group + 1)


def _part(scan: Scan, channels: slice, group: slice) -> Scan:
    return Scan(
        scan.u[:, channels],
        scan.delta[:, channels],
        scan.A[channels],
        scan.B[channels],
        scan.C[:, group],
        None if scan.D is None else scan.D[channels],
        _rows_of(scan.z, channels),
        None if scan.delta_bias is None else scan.delta_bias[channels],
        scan.delta_softplus,
    )


def _rows_of(rows: Tensor | None, channels: slice) -> Tensor | None:
    return None if rows is None else rows[:, channels]


def _joined(parts: Sequence[Any], axis: int) -> Any:
    return None if parts[0] is None else torch.cat(list(parts), axis)
