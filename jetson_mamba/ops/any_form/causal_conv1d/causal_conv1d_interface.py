"""The wrappers of the package causal-conv1d."""

from jetson_mamba import call_forms
from jetson_mamba.ops import causal_conv1d
from jetson_mamba.ops.any_form import in_any_form, passed_on
from jetson_mamba.ops.causal_conv1d import causal_conv1d_update

causal_conv1d_fn = in_any_form(
    "causal_conv1d.causal_conv1d_fn", causal_conv1d.causal_conv1d_fn, call_forms.WRAPPER, 3
)
__all__ = ["causal_conv1d_fn", "causal_conv1d_update"]
__getattr__ = passed_on("causal_conv1d.causal_conv1d_interface")
