"""Mamba-3 as its block calls it: the scan over whole sequences, the steps of decoding."""

from __future__ import annotations

from .op import mamba3_mimo, mamba3_siso_combined
from .step import apply_rotary_qk_inference_fwd, mamba3_siso_step, mamba3_step_fn

__all__ = [
    "apply_rotary_qk_inference_fwd",
    "mamba3_mimo",
    "mamba3_siso_combined",
    "mamba3_siso_step",
    "mamba3_step_fn",
]
