"""A scan's chunks: on a GPU in 16 bits where that serves, on a CPU by threads.

Each thread has heads of its own of some sequences. Heads know nothing of each other but the B and C
of their group, of which gradients are summed. All parts are cut into the blocks of the whole, so
that what the forward pass keeps does not tell by how many threads it was made.
"""

from __future__ import annotations

from functools import partial
from typing import Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch import workers
from jetson_mamba.dispatch.division import Part, divided

from . import chunks, narrow
from .block import CHUNK, blocks
from .chunks import Gradients, Targets
from .contract import Scan


def forward(scan: Scan, out: Tensor) -> tuple[Tensor, list[Tensor]]:
    """As :func:`chunks.forward`, which says what is kept."""
    cut = blocks(scan, 0, scan.x.shape[1])
    if narrow.serves(scan):
        return narrow.forward(scan, out, cut)
    threads, parts = _parts(scan)
    if threads == 1:
        return chunks.forward(scan, out, cut)
    calls = [
        partial(chunks.forward, _of_scan(part, scan), _signal(part, out), cut) for part in parts
    ]
    return _whole_states(scan, parts, workers.run(calls, threads), threads)


def states(scan: Scan) -> list[Tensor]:
    """As :func:`chunks.states`."""
    cut = blocks(scan, 0, scan.x.shape[1])
    if narrow.serves(scan):
        return narrow.states(scan, cut)
    threads, parts = _parts(scan)
    if threads == 1:
        return chunks.states(scan, cut)[1]
    calls = [partial(chunks.states, _of_scan(part, scan), cut) for part in parts]
    return _whole_states(scan, parts, workers.run(calls, threads), threads)[1]


def backward(
    scan: Scan,
    kept: Sequence[Tensor],
    dout: Tensor,
    dfinal_states: Tensor | None,
    targets: Targets,
    *,
    out: Tensor | None = None,
    operands: torch.dtype | None = None,
) -> Gradients:
    """As :func:`chunks.backward`."""
    cut = blocks(scan, 0, scan.x.shape[1])
    if narrow.serves(scan):
        return _cast(scan, narrow.backward(scan, kept, dout, dfinal_states, targets, cut))
    threads, parts = _parts(scan)
    if threads == 1:
        found = chunks.backward(
            scan, kept, dout, dfinal_states, targets, cut, out=out, operands=operands
        )
        return _cast(scan, found)
    calls, shares = [], []
    for part in parts:
        of_part = _of_scan(part, scan)
        # Heads of one group that are apart have a share of its gradient each.
        share = (_like(of_part.B, scan.dtype), _like(of_part.C, scan.dtype))
        shares.append(share)
        calls.append(
            partial(
                chunks.backward,
                of_part,
                [_state(part, scan, each) for each in kept],
                _signal(part, dout),
                None if dfinal_states is None else dfinal_states[part.batch, part.channels],
                Targets(
                    _signal(part, targets.x),
                    _signal(part, targets.dt),
                    *share,
                    None if targets.z is None else _signal(part, targets.z),
                ),
                cut,
                out=None if out is None else _signal(part, out),
                operands=operands,
            )
        )
    found = _summed(scan, parts, workers.run(calls, threads))
    for position, target in enumerate((targets.B, targets.C)):
        total = torch.zeros(target.shape, dtype=scan.dtype, device=target.device)
        for part, share in zip(parts, shares):
            total[part.batch, :, part.groups] += share[position]
        target.copy_(total)
    return _cast(scan, found)


def _like(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(tensor.shape, dtype=dtype, device=tensor.device)


def _parts(scan: Scan) -> tuple[int, list[Part]]:
    batch, seqlen, nheads, headdim = scan.x.shape
    if scan.x.device.type != "cpu":
        return 1, []
    threads = workers.threads_for(batch * seqlen * nheads * max(headdim, CHUNK))
    return threads, divided(threads, batch, nheads, scan.B.shape[2])


def _signal(part: Part, tensor: Tensor) -> Tensor:
    """Of (batch, seqlen, nheads, ...), a view."""
    return tensor[part.batch, :, part.channels]


def _of_scan(part: Part, scan: Scan) -> Scan:
    batch, heads, groups = part
    return scan._replace(
        x=scan.x[batch, :, heads],
        dt=scan.dt[batch, :, heads],
        A=scan.A[heads],
        B=scan.B[batch, :, groups],
        C=scan.C[batch, :, groups],
        D=None if scan.D is None else scan.D[heads],
        z=None if scan.z is None else scan.z[batch, :, heads],
        dt_bias=None if scan.dt_bias is None else scan.dt_bias[heads],
        initial_states=None if scan.initial_states is None else scan.initial_states[batch, heads],
        seq_idx=None if scan.seq_idx is None else scan.seq_idx[batch],
        cu_seqlens=None,
    )


def _state(part: Part, scan: Scan, state: Tensor) -> Tensor:
    """Of states (batch, groups, heads of a group * headdim, dstate), a view."""
    headdim = scan.x.shape[3]
    heads_before = part.groups.start * (scan.x.shape[2] // scan.B.shape[2])
    if part.groups.stop - part.groups.start > 1:
        return state[part.batch, part.groups]
    first, last = (
        (head - heads_before) * headdim for head in (part.channels.start, part.channels.stop)
    )
    return state[part.batch, part.groups, first:last]


def _whole_states(
    scan: Scan, parts: list[Part], found: Sequence[tuple[Tensor, list[Tensor]]], threads: int
) -> tuple[Tensor, list[Tensor]]:
    """The last state, and those before each block."""
    batch, _, nheads, headdim = scan.x.shape
    groups, dstate = scan.B.shape[2:]
    shape = (batch, groups, nheads // groups * headdim, dstate)
    state, *kept = (
        torch.empty(shape, dtype=scan.dtype, device=scan.x.device)
        for _ in range(1 + len(found[0][1]))
    )

    def copy(part: Part, of_part: Tensor, kept_of_part: list[Tensor]) -> None:
        for whole, each in zip((state, *kept), (of_part, *kept_of_part)):
            _state(part, scan, whole).copy_(each)

    # Each would be divided among threads again.
    workers.run([partial(copy, part, *of_part) for part, of_part in zip(parts, found)], threads)
    return state, kept


def _summed(scan: Scan, parts: list[Part], found: Sequence[Gradients]) -> Gradients:
    """The gradients of the whole, in the dtype of computation."""

    def whole(like: Tensor | None) -> Tensor | None:
        return None if like is None else torch.zeros_like(like, dtype=scan.dtype)

    total = Gradients(
        torch.zeros_like(scan.A, dtype=scan.dtype),
        whole(scan.D),
        whole(scan.dt_bias),
        whole(scan.initial_states),
    )
    for part, of_part in zip(parts, found):
        for vector, gradient in zip(total[:3], of_part[:3]):
            if vector is not None and gradient is not None:
                vector[part.channels] += gradient
        if total.initial_states is not None and of_part.initial_states is not None:
            total.initial_states[part.batch, part.channels] = of_part.initial_states
    return total


def _cast(scan: Scan, found: Gradients) -> Gradients:
    """In the dtypes of the arguments."""
    dA, *rest = (
        None if gradient is None or of is None else gradient.to(of.dtype)
        for gradient, of in zip(found, (scan.A, scan.D, scan.dt_bias, scan.initial_states))
    )
    assert dA is not None
    return Gradients(dA, *rest)
