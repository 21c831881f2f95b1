"""The causal depthwise convolution of Mamba: what modified copies call."""

from .op import OP, causal_conv1d_bwd, causal_conv1d_fn, causal_conv1d_update

__all__ = ["OP", "causal_conv1d_bwd", "causal_conv1d_fn", "causal_conv1d_update"]
