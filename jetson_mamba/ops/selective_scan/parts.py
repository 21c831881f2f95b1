"""A scan in parts, each of some sequences and channels, which a thread each can work on.

Channels know nothing of each other but the B and C that they share. So a part's output is its own,
and gradients of what parts share are summed.
"""

from __future__ import annotations

from typing import NamedTuple, overload

import torch
from torch import Tensor

from jetson_mamba.dispatch import workers

from .contract import Scan, Scanned

# Of a part, at each step: with fewer, starting an operation takes longer than the operation.
FEWEST_STATES = 512


class Shared(NamedTuple):
    """The gradients of what sequences or channels share, summed over those of a part."""

    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor | None
    ddelta_bias: Tensor | None


class Part(NamedTuple):
    """Some of the sequences and some of the channels, which are those of whole groups or of one."""

    batch: slice
    channels: slice
    groups: slice

    @overload
    def signal(self, signal: Tensor) -> Tensor: ...
    @overload
    def signal(self, signal: None) -> None: ...
    @overload
    def signal(self, signal: Tensor | None) -> Tensor | None: ...
    def signal(self, signal: Tensor | None) -> Tensor | None:
        """Of (batch, dim, ...), a view."""
        return None if signal is None else signal[self.batch, self.channels]

    def weight(self, weight: Tensor) -> Tensor:
        """Of a B or C, a view: (batch, groups, ...) or (dim, ...)."""
        if weight.dim() == 4:
            return weight[self.batch, self.groups]
        return weight[self.channels]

    def scan(self, scan: Scan) -> Scan:
        """Of a scan's arguments."""
        return Scan(
            self.signal(scan.u),
            self.signal(scan.delta),
            scan.A[self.channels],
            self.weight(scan.B),
            self.weight(scan.C),
            None if scan.D is None else scan.D[self.channels],
            self.signal(scan.z),
            None if scan.delta_bias is None else scan.delta_bias[self.channels],
            scan.delta_softplus,
        )

    def scanned(self, results: Scanned) -> Scanned:
        """Of a scan's results, to be written."""
        return Scanned(
            self.signal(results.out),
            self.signal(results.x),
            self.signal(results.out_z),
        )


def parts_of(scan: Scan) -> tuple[int, list[Part]]:
    """How many threads work on a scan, and the parts."""
    batch, dim, seqlen = scan.u.shape
    dstate = scan.A.shape[1]
    whole = Part(slice(0, batch), slice(0, dim), slice(0, scan.groups))
    if scan.u.device.type != "cpu":
        return 1, [whole]
    threads = workers.threads_for(batch * dim * dstate * seqlen)
    if threads == 1:
        return 1, [whole]
    sequences = _pieces(batch, min(threads, batch))
    # Some more than there are threads do no harm where they do not divide evenly.
    each = -(-threads // len(sequences))
    each = max(1, min(each, batch * dim * dstate // (len(sequences) * FEWEST_STATES)))
    runs = _pieces(scan.groups, min(each, scan.groups))
    width = dim // scan.groups
    parts = []
    for groups in runs:
        first, last = groups.start * width, groups.stop * width
        # Channels of one group may be divided, those of several not: their shares are unequal.
        among = max(1, each // len(runs)) if groups.stop - groups.start == 1 else 1
        for channels in _pieces(last - first, min(among, last - first)):
            part = slice(first + channels.start, first + channels.stop)
            parts += [Part(piece, part, groups) for piece in sequences]
    return threads, parts


def summed(scan: Scan, parts: list[Part], found: list[Shared]) -> Shared:
    """The gradients of a whole scan, in its arguments' dtypes, from those of its parts."""
    if len(parts) == 1:
        return _cast(scan, found[0])
    first = found[0]
    dA = torch.zeros_like(scan.A)
    dB, dC = (
        torch.zeros_like(weight, dtype=gradient.dtype)
        for weight, gradient in ((scan.B, first.dB), (scan.C, first.dC))
    )
    dD, ddelta_bias = (
        None if each is None else torch.zeros_like(each) for each in (scan.D, scan.delta_bias)
    )
    for part, of_part in zip(parts, found):
        dA[part.channels] += of_part.dA
        part.weight(dB).add_(of_part.dB)
        part.weight(dC).add_(of_part.dC)
        for vector, gradient in ((dD, of_part.dD), (ddelta_bias, of_part.ddelta_bias)):
            if vector is not None and gradient is not None:
                vector[part.channels] += gradient
    return _cast(scan, Shared(dA, dB, dC, dD, ddelta_bias))


def _cast(scan: Scan, shared: Shared) -> Shared:
    return shared._replace(dB=shared.dB.to(scan.B.dtype), dC=shared.dC.to(scan.C.dtype))


def _pieces(total: int, count: int) -> list[slice]:
    """``count`` runs, as equal as can be."""
    return [slice(total * i // count, total * (i + 1) // count) for i in range(count)]
