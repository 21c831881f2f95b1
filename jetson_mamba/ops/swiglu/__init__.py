"""The gate of a gated MLP: what modified copies call."""

from .op import swiglu_backward, swiglu_forward

__all__ = ["swiglu_backward", "swiglu_forward"]
