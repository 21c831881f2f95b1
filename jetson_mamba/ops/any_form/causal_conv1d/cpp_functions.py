"""The functions around the extension of causal-conv1d, from its release 1.5.1 on."""

from jetson_mamba.ops.any_form import causal_conv1d_cuda, passed_on

causal_conv1d_fwd_function = causal_conv1d_cuda.causal_conv1d_fwd
causal_conv1d_bwd_function = causal_conv1d_cuda.causal_conv1d_bwd
causal_conv1d_update_function = causal_conv1d_cuda.causal_conv1d_update
__getattr__ = passed_on("causal_conv1d.cpp_functions")
