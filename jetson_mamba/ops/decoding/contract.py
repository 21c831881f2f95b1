"""What a backend of a decoding step is given and gives back."""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import compute_dtype


class Step(NamedTuple):
    """The arguments of a step, with all of their axes; any strides, 0 along what is expanded.

    states (count, nheads, dim, dstate) is written in place; x, dt and z are (batch, nheads, dim), A
    (nheads, dim, dstate), B and C (batch, ngroups, dstate), D and dt_bias (nheads, dim), indices
    (batch,), int32 or int64.
    """

    states: Tensor
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    indices: Tensor | None
    dt_softplus: bool

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in."""
        return compute_dtype(
            *(self.states, self.x, self.dt, self.A, self.B, self.C, self.D, self.z, self.dt_bias)
        )


class Case(NamedTuple):
    """What decides which backend serves a step: dtypes of states, x, dt and A."""

    device: torch.device
    state_dtype: torch.dtype
    dtype: torch.dtype
    step_dtype: torch.dtype
    weight_dtype: torch.dtype


# A step as selective_state_update says: out (batch, nheads, dim), in the dtype of x. None for a
# step that is none of a backend's.
Implementation = Callable[[Step], "Tensor | None"]
