"""The calls of compiled extensions that Mamba-1 has in common with Mamba-2.

The forms of their calls are in ``jetson_mamba/call_forms.py``.
"""

from __future__ import annotations

from jetson_mamba import call_forms
from jetson_mamba.rewrite import Call, Edit, Import, Rename

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
    forms=call_forms.FORWARD,
)

CONVOLUTION_BACKWARD = Call(
    of=(
        "causal_conv1d_cuda.causal_conv1d_bwd",
        "causal_conv1d.cpp_functions.causal_conv1d_bwd_function",
    ),
    becomes="jetson_mamba.ops.causal_conv1d_bwd",
    positional=4,
    forms=call_forms.BACKWARD,
)

# The wrapper, in the reference functions.
CONVOLUTION_WRAPPER = Call(
    of=(
        "causal_conv1d.causal_conv1d_fn",
        "causal_conv1d.causal_conv1d_interface.causal_conv1d_fn",
    ),
    becomes="jetson_mamba.ops.causal_conv1d_fn",
    positional=3,
    forms=call_forms.WRAPPER,
)

CONVOLUTION_UPDATE = Call(
    of=(
        "causal_conv1d_cuda.causal_conv1d_update",
        "causal_conv1d.cpp_functions.causal_conv1d_update_function",
    ),
    becomes="jetson_mamba.ops.causal_conv1d_update",
    positional=4,
    forms=call_forms.UPDATE,
)

CONVOLUTION: tuple[Edit, ...] = (
    CONVOLUTION_FORWARD,
    CONVOLUTION_BACKWARD,
    CONVOLUTION_WRAPPER,
    CONVOLUTION_UPDATE,
    *(
        Rename(f"{module}.causal_conv1d_update", "jetson_mamba.ops.causal_conv1d_update")
        for module in ("causal_conv1d", "causal_conv1d.causal_conv1d_interface")
    ),
)
