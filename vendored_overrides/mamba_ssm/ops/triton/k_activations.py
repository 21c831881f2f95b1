"""The gate of a gated MLP, which is launched as a Triton kernel."""

from jetson_mamba.rewrite import Override

from ....launchers import IMPORT, past_triton

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.k_activations",
    edits=(
        IMPORT,
        past_triton("_swiglu_fwd", "swiglu_forward", ("xy", "out")),
        past_triton(
            "_swiglu_bwd", "swiglu_backward", ("xy", "dout", "dxy", "recompute_output", "out")
        ),
    ),
    required=False,
)
