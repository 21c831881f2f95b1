"""The interface of a backend of the selective scan: what it is given, what it gives back.

This stands in a module of its own so that the op and its backends can both
import it. The op checks the arguments and evens out their dtypes, so that a backend meets only
what is described here and holds the numerics alone.

Sizes: batch, dim, seqlen; dstate states per channel; groups, where channel ``d`` reads group
``d // (dim / groups)``. With ``width = seqlen`` for real ``A`` and ``2 * seqlen`` for complex
``A`` (real and imaginary parts of one step side by side):

=====================  ==============================================  =====================
argument               shape                                           dtype
=====================  ==============================================  =====================
u, delta, z, dout,     (batch, dim, seqlen)                            ``case.dtype``
out, dz
A                      (dim, dstate)                                   ``weight_dtype(case)``
B, C, constant         (dim, dstate)                                   ``weight_dtype(case)``
B, C, variable         (batch, groups, dstate, width)                  ``case.dtype``
D, delta_bias          (dim,)                                          ``real_dtype(case)``
x                      (batch, dim, rows, 2 * dstate)                  ``weight_dtype(case)``
=====================  ==============================================  =====================

All are on ``case.device``; strides are whatever the caller has, seqlen is at least 1, and one of
B and C may be constant while the other has several groups.

``x`` is what backward wants kept of the states: ``x[:, :, -1, 1::2]`` is the last state. In
upstream's form, which ``extension`` and ``pytorch`` give, a row belongs to each chunk of 2048
steps, ``x[..., 1::2]`` is the state at its end and ``x[..., 0::2]`` the product of all decays from
step 0 to there. A backend may keep other rows. Forward and backward of one call can be served by
different backends, so each makes an ``x`` again that is missing or not of its own rows.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.fields import Fields, Tensors

CHUNK = 2048


class Scan(NamedTuple):
    """The arguments of one scan."""

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    delta_bias: Tensor | None
    delta_softplus: bool

    @property
    def groups(self) -> int:
        """How many parts of the channels have a B or C of their own."""
        for weight in (self.B, self.C):
            if weight.dim() == 4:
                return int(weight.shape[1])
        return 1

    @property
    def chunks(self) -> int:
        """The rows of ``x`` in upstream's form."""
        return upstream_rows(int(self.u.shape[2]))


SCAN = Fields(Scan)


class Scanned(NamedTuple):
    """What the forward pass gives: ``out`` (laid out as delta) before the gate, ``out_z`` after."""

    out: Tensor
    x: Tensor
    out_z: Tensor | None

    @property
    def output(self) -> Tensor:
        """What the scan is for: ``out_z``, or without z ``out``."""
        return self.out if self.out_z is None else self.out_z


class Returning(NamedTuple):
    """What the backward pass is given besides the scan.

    ``out`` is given where z is. ``dz``, where given, is written in place, and may be a strided
    half of a larger tensor.
    """

    dout: Tensor
    x: Tensor | None
    out: Tensor | None
    dz: Tensor | None
    recompute_out_z: bool


class Gradients(NamedTuple):
    """Each of its argument's dtype; None without that argument, or, ``out_z``, not asked for."""

    du: Tensor
    ddelta: Tensor
    dA: Tensor
    dB: Tensor
    dC: Tensor
    dD: Tensor | None
    ddelta_bias: Tensor | None
    dz: Tensor | None = None
    out_z: Tensor | None = None

    @property
    def in_order(self) -> Tensors:
        """One for each argument of the scan, in its place; None for an option."""
        return SCAN.gradients({name[1:]: each for name, each in self._asdict().items()})


class Case(NamedTuple):
    """What decides whether a backend applies."""

    device: torch.device
    dtype: torch.dtype
    is_complex: bool
    dstate: int


class Implementation(NamedTuple):
    """The functions of a backend; none records a graph.

    ``output`` gives what ``forward`` gives last, ``out_z`` or without z ``out``, for calls that no
    backward pass follows: nothing else need be kept. ``rows`` tells how many rows ``x`` has at
    a seqlen, which may be symbolic.
    """

    forward: Callable[[Scan], Scanned]
    backward: Callable[[Scan, Returning], Gradients]
    output: Callable[[Scan], Tensor]
    rows: Callable[[int], int]


def upstream_rows(seqlen: int) -> int:
    """The rows of ``x`` in upstream's form, one for each chunk."""
    return (seqlen + CHUNK - 1) // CHUNK


def real_dtype(case: Case) -> torch.dtype:
    """The dtype of sums, D and delta_bias: float64 for float64, otherwise float32."""
    return torch.float64 if case.dtype == torch.float64 else torch.float32


def weight_dtype(case: Case) -> torch.dtype:
    """The dtype of A, of constant B and C, and of the states."""
    real = real_dtype(case)
    if not case.is_complex:
        return real
    return torch.complex128 if real == torch.float64 else torch.complex64
