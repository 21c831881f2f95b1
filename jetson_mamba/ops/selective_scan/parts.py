"""A scan in parts that a thread each can work on: some channels of some sequences.

Channels know nothing of each other but the B and C that they share. So a part's output is its own,
and gradients of what parts share are summed.
"""

from __future__ import annotations

from typing import NamedTuple, overload

import torch
from torch import Tensor

from jetson_mamba.dispatch.division import Part, divided

from .contract import Returning, Scan, Scanned

# Of a part, at each step: with fewer, starting an operation takes longer than the operation.
FEWEST_STATES = 512


class Shared(NamedTuple):
    """The gradients of what sequences or channels share, summed over those of a part."""

    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor | None
    ddelta_bias: Tensor | None


class PartOfScan(Part):
    """A part, and what of a scan belongs to it."""

    __slots__ = ()

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

    def returning(self, given: Returning) -> Returning:
        """Of what a backward pass is given."""
        dout, x, out, dz, recompute_out_z = given
        return Returning(
            self.signal(dout), self.signal(x), self.signal(out), self.signal(dz), recompute_out_z
        )


def parts_of(scan: Scan, threads: int) -> list[PartOfScan]:
    """The parts that so many threads work on."""
    batch, dim, _ = scan.u.shape
    fewest = -(-FEWEST_STATES // max(1, batch * scan.A.shape[1]))
    return [PartOfScan(*part) for part in divided(threads, batch, dim, scan.groups, fewest)]


def summed(scan: Scan, parts: list[PartOfScan], found: list[Shared]) -> Shared:
    """The gradients of a whole scan, from those of its parts."""
    if len(parts) == 1:
        return found[0]
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
    return Shared(dA, dB, dC, dD, ddelta_bias)
