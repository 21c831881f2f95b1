"""The functions of the package causal-conv1d."""

from jetson_mamba.ops.any_form import passed_on
from jetson_mamba.ops.any_form.causal_conv1d import causal_conv1d_interface, cpp_functions
from jetson_mamba.ops.any_form.causal_conv1d.causal_conv1d_interface import (
    causal_conv1d_fn,
    causal_conv1d_update,
)

__all__ = ["causal_conv1d_fn", "causal_conv1d_interface", "causal_conv1d_update", "cpp_functions"]
__getattr__ = passed_on("causal_conv1d")
