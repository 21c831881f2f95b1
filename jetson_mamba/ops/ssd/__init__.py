"""Mamba-2's scan, its parts, the mixer around it: what modified copies call."""

from jetson_mamba.dispatch.triton_runs import triton_runs_on

from .op import (
    OP,
    mamba_chunk_scan_combined,
    mamba_split_conv1d_scan_combined,
    through_mixer_autograd,
    through_scan_autograd,
)
from .parts import (
    bmm_chunk_forward,
    chunk_cumsum_forward,
    chunk_scan,
    chunk_scan_combined_backward,
    chunk_scan_forward,
    chunk_state,
    chunk_state_forward,
    chunk_state_varlen,
    state_passing,
    state_passing_forward,
)

__all__ = [
    "OP",
    "bmm_chunk_forward",
    "chunk_cumsum_forward",
    "chunk_scan",
    "chunk_scan_combined_backward",
    "chunk_scan_forward",
    "chunk_state",
    "chunk_state_forward",
    "chunk_state_varlen",
    "mamba_chunk_scan_combined",
    "mamba_split_conv1d_scan_combined",
    "state_passing",
    "state_passing_forward",
    "through_mixer_autograd",
    "through_scan_autograd",
    "triton_runs_on",
]
