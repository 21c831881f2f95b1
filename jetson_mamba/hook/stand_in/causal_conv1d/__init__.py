"""jetson_mamba's stand-in for causal-conv1d, with the functions that its package has.

The signatures are those of causal-conv1d 1.7.0; what computes is chosen by
``jetson_mamba.ops.causal_conv1d``.
"""

from jetson_mamba.ops import causal_conv1d_fn, causal_conv1d_update

__version__ = "1.7.0+jetson.mamba"
__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]
