"""Norms, with what mamba-ssm fuses into them: residual, gate, projection."""

from .linear import layer_norm_linear_fn
from .op import (
    layer_norm_again,
    layer_norm_fn,
    layer_norm_of_1,
    layernorm_fn,
    rms_norm_fn,
    rms_norm_forward,
    rmsnorm_fn,
    through_norm_autograd,
)
from .parts import gated_norm_backward, gated_norm_forward, norm_forward, norm_forward_of_1

__all__ = [
    "gated_norm_backward",
    "gated_norm_forward",
    "layer_norm_again",
    "layer_norm_fn",
    "layer_norm_linear_fn",
    "layer_norm_of_1",
    "layernorm_fn",
    "norm_forward",
    "norm_forward_of_1",
    "rms_norm_fn",
    "rms_norm_forward",
    "rmsnorm_fn",
    "through_norm_autograd",
]
