"""The interface of a backend of the convolution: what it is given, what it gives back.

This stands in a module of its own so that the op and its backends can both
import it. The op checks every argument, so a backend meets only what is described here.

Sizes: batch, dim, seqlen; width taps for each channel, ``states = width - 1`` inputs of the past.

==========================================  ======================  ==================
argument                                    shape                   dtype
==========================================  ======================  ==================
x, dout, dx                                 (batch, dim, seqlen)    ``case.dtype``
weight                                      (dim, width)            ``case.weight_dtype``
bias                                        (dim,)                  ``case.weight_dtype``
seq_idx                                     (batch, seqlen)         int32
initial_states, final_states, their         (batch, dim, states)    ``case.dtype``
gradients
conv_state                                  (entries, dim, >= width - 1)  ``case.dtype``
cache_seqlens, conv_state_indices           (batch,)                int32
==========================================  ======================  ==================

All are on ``case.device``, none is empty, and strides are whatever the caller has.

The convolution is ``z[t] = bias + sum(weight[width - 1 - lag] * x[t - lag] for lag < width)`` for
each channel, and ``out = z * sigmoid(z)`` with ``silu``, else ``z``. ``x[-1]`` and earlier are
``initial_states`` from its end, or zero. With ``seq_idx``, a tap counts only where it belongs to
the sequence of ``t``, whatever lies between; the initial states belong to the sequence of the
first step; a negative ``seq_idx`` marks padding, where the output is zero and no gradient
starts.
"""

from __future__ import annotations

from typing import NamedTuple, Optional, Protocol, Tuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """What decides which backend serves a call."""

    device: torch.device
    dtype: torch.dtype
    weight_dtype: torch.dtype
    width: int


# dx, dweight, dbias (None without bias), dinitial_states (None unless asked for).
Gradients = Tuple[Tensor, Tensor, Optional[Tensor], Optional[Tensor]]


class Forward(Protocol):
    """The output; ``final_states_out``, where given, is written in place.

    The final states are the last ``width - 1`` inputs, the initial states counted as such.
    ``final_states_out`` may be ``initial_states`` itself.
    """

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        final_states_out: Tensor | None,
        silu: bool,
        /,
    ) -> Tensor:
        """Run it."""
        ...


class Backward(Protocol):
    """The gradients, each in the dtype of what it belongs to.

    ``dx``, where given, is written in place, whatever its strides, and returned; it overlaps
    neither ``x`` nor ``dout``. ``return_dinitial_states`` may stand without ``initial_states``,
    which are zeros then.
    """

    def __call__(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dout: Tensor,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        dfinal_states: Tensor | None,
        dx: Tensor | None,
        return_dinitial_states: bool,
        silu: bool,
        /,
    ) -> Gradients:
        """Run it."""
        ...


class Update(Protocol):
    """The output (batch, dim, seqlen) of further steps; ``conv_state`` is written in place.

    Without ``cache_seqlens`` the state holds the latest inputs, the last at its end. With it
    the state is a ring: step ``i`` of ``x`` goes to ``(cache_seqlens + i) % length``, and the
    inputs before it stand there before. ``conv_state_indices`` names the entry of the state
    that each row of ``x`` belongs to; a negative one marks padding, which gives zeros and
    writes nothing.
    """

    def __call__(
        self,
        x: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cache_seqlens: Tensor | None,
        conv_state_indices: Tensor | None,
        silu: bool,
        /,
    ) -> Tensor:
        """Run it."""
        ...


class Implementation(NamedTuple):
    """A backend that has been made ready for a case. No function in it records a graph."""

    forward: Forward
    backward: Backward
    update: Update
