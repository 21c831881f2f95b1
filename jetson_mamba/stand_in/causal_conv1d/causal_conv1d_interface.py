"""The same functions under the module name that some code imports them from."""

from jetson_mamba.ops.causal_conv1d import causal_conv1d_fn, causal_conv1d_update

__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]
