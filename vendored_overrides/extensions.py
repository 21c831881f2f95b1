"""The calls of compiled extensions that both Mamba-1 and Mamba-2 make, and what they become.

A further way to call the convolution is one more ``Form`` here.
"""

from jetson_mamba.rewrite import Call, Form, Import

IMPORTS = tuple(
    Import(module, "jetson_mamba.ops")
    for module in (
        "causal_conv1d",
        "causal_conv1d.causal_conv1d_interface",
        "causal_conv1d.cpp_functions",
        "causal_conv1d_cuda",
        "selective_scan_cuda",
    )
)

CONVOLUTION_FORWARD = Call(
    of=(
        "causal_conv1d_cuda.causal_conv1d_fwd",
        "causal_conv1d.cpp_functions.causal_conv1d_fwd_function",
    ),
    becomes="jetson_mamba.ops.causal_conv1d_fn",
    positional=3,
    forms=(
        Form(("x", "weight", "bias", "silu_activation")),
        Form(("x", "weight", "bias", "seq_idx", "silu_activation")),
        Form(
            (
                "x",
                "weight",
                "bias",
                "seq_idx",
                "initial_states",
                "final_states_out",
                "silu_activation",
            )
        ),
    ),
)

CONVOLUTION_BACKWARD = Call(
    of=(
        "causal_conv1d_cuda.causal_conv1d_bwd",
        "causal_conv1d.cpp_functions.causal_conv1d_bwd_function",
    ),
    becomes="jetson_mamba.ops.causal_conv1d_bwd",
    positional=4,
    forms=(
        Form(("x", "weight", "bias", "dout", "dx", "silu_activation"), results=3),
        Form(("x", "weight", "bias", "dout", "seq_idx", "dx", "silu_activation"), results=3),
        Form(
            (
                "x",
                "weight",
                "bias",
                "dout",
                "seq_idx",
                "initial_states",
                "dfinal_states",
                "dx",
                "return_dinitial_states",
                "silu_activation",
            )
        ),
    ),
)

# The wrapper, in the reference functions: to causal-conv1d 1.1 the activation came by position.
CONVOLUTION_WRAPPER = Call(
    of=(
        "causal_conv1d.causal_conv1d_fn",
        "causal_conv1d.causal_conv1d_interface.causal_conv1d_fn",
    ),
    becomes="jetson_mamba.ops.causal_conv1d_fn",
    positional=3,
    forms=(
        Form(("x", "weight", "bias", "activation"), texts=("activation",)),
        Form(("x", "weight", "bias", "seq_idx", "activation"), texts=("activation",)),
        Form(
            (
                "x",
                "weight",
                "bias",
                "seq_idx",
                "initial_states",
                "return_final_states",
                "final_states_out",
                "activation",
            ),
            optional=(
                "bias",
                "seq_idx",
                "initial_states",
                "return_final_states",
                "final_states_out",
                "activation",
            ),
        ),
    ),
)

CONVOLUTION_UPDATE = Call(
    of=(
        "causal_conv1d_cuda.causal_conv1d_update",
        "causal_conv1d.cpp_functions.causal_conv1d_update_function",
    ),
    becomes="jetson_mamba.ops.causal_conv1d_update",
    positional=4,
    forms=tuple(
        Form(("x", "conv_state", "weight", "bias", "silu_activation", *later))
        for later in ((), ("cache_seqlens",), ("cache_seqlens", "conv_state_indices"))
    ),
)

CONVOLUTION = (
    CONVOLUTION_FORWARD,
    CONVOLUTION_BACKWARD,
    CONVOLUTION_WRAPPER,
    CONVOLUTION_UPDATE,
)
