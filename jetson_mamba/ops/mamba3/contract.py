"""What a scan of Mamba-3 is given and gives back, with one input and output a step or several.

``rank`` is the number of inputs and outputs of a step: 1 where the op is SISO.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import compute_dtype
from jetson_mamba.dispatch.fields import Fields


class States(NamedTuple):
    """What passes from one step to the next, of each of ``sequences``.

    ``angle`` (sequences, nheads, angles) is the cumulated rotation, in [0, 2 pi); ``ssm``
    (sequences, nheads, headdim, dstate) the state; ``k`` (sequences, rank, nheads, dstate) the
    last K, with its bias and rotated; ``v`` (sequences, nheads, headdim) the last V.
    """

    angle: Tensor
    ssm: Tensor
    k: Tensor
    v: Tensor


class Scan(NamedTuple):
    """The arguments of one scan.

    Shapes: q and k (batch, seqlen, rank, ngroups, dstate), v (batch, seqlen, nheads, headdim), adt,
    dt and trap (batch, nheads, seqlen), q_bias and k_bias (nheads, rank, dstate), angles (batch,
    seqlen, nheads, angles), D (nheads,), v_proj (nheads, rank, headdim). ``ends``, where
    given, are the boundaries of the sequences that are packed into a batch of 1. Where ``halves``,
    the pairs that are turned are (i, i + dstate / 2), else (2 i, 2 i + 1).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    adt: Tensor
    dt: Tensor
    trap: Tensor
    q_bias: Tensor
    k_bias: Tensor
    angles: Tensor
    D: Tensor | None
    v_proj: Tensor | None
    initial: States | None
    ends: tuple[int, ...] | None
    halves: bool

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: at least float32, float64 if any argument is."""
        initial: tuple[Tensor, ...] = self.initial or ()
        return compute_dtype(*SCAN.tensors(self), *initial)


SCAN = Fields(Scan)
