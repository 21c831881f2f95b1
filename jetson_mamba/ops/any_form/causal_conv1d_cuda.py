"""The functions of the extension of causal-conv1d."""

from jetson_mamba import call_forms
from jetson_mamba.ops import causal_conv1d
from jetson_mamba.ops.any_form import in_any_form, passed_on

causal_conv1d_fwd = in_any_form(
    "causal_conv1d_cuda.causal_conv1d_fwd", causal_conv1d.causal_conv1d_fn, call_forms.FORWARD, 3
)
causal_conv1d_bwd = in_any_form(
    "causal_conv1d_cuda.causal_conv1d_bwd", causal_conv1d.causal_conv1d_bwd, call_forms.BACKWARD, 4
)
causal_conv1d_update = in_any_form(
    "causal_conv1d_cuda.causal_conv1d_update",
    causal_conv1d.causal_conv1d_update,
    call_forms.UPDATE,
    4,
)
__getattr__ = passed_on("causal_conv1d_cuda")
