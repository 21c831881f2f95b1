"""What a backend of the ssd op is given and gives back.

This stands in a module of its own so that the op (``__init__``) and its backends can both
import it. The op checks the arguments; a backend meets only those that fit together.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor


class Case(NamedTuple):
    """What decides whether a backend applies."""

    device: torch.device


class Scan(NamedTuple):
    """The arguments of one scan; shapes as in ``mamba_chunk_scan_combined``."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    initial_states: Tensor | None
    seq_idx: Tensor | None
    dt_softplus: bool
    dt_limit: tuple[float, float]

    @property
    def dtype(self) -> torch.dtype:
        """What is computed in: at least float32, float64 if any argument is."""
        dtype = torch.float32
        for field in (*self[:5], self.D, self.z, self.dt_bias, self.initial_states):
            if field is not None:
                dtype = torch.promote_types(dtype, field.dtype)
        return dtype


class Mixer(NamedTuple):
    """The arguments of a whole Mamba-2 mixer; shapes as in ``mamba_split_conv1d_scan_combined``."""

    zxbcdt: Tensor
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    initial_states: Tensor | None
    rmsnorm_weight: Tensor | None
    outproj_weight: Tensor | None
    outproj_bias: Tensor | None
    seq_idx: Tensor | None
    dt_limit: tuple[float, float]
    activation: str | None
    rmsnorm_eps: float
    headdim: int
    ngroups: int
    norm_before_gate: bool


class Implementation(NamedTuple):
    """The functions of a backend, both differentiable; a scan with ``ends`` is not."""

    # out in the dtype of x, the last state in that of the sums, and, given the boundaries of
    # packed sequences, the states at their ends
    scan: Callable[[Scan, list[int] | None], tuple[Tensor, Tensor, Tensor | None]]
    # out after norm, gate and projection, and the last state
    mixer: Callable[[Mixer], tuple[Tensor, Tensor]]
