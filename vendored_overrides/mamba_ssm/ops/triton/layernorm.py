"""The norms of the models of 1.x, with the residual in them."""

from jetson_mamba.rewrite import Override

from ....launchers import past_triton as launches
from ....norms import IMPORT, LINEAR, past_triton

PARAMETERS = (
    "x",
    "weight",
    "bias",
    "residual",
    "eps",
    "prenorm",
    "residual_in_fp32",
    "is_rms_norm",
)

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.layernorm",
    edits=(
        IMPORT,
        past_triton("layer_norm_fn", PARAMETERS, of="layer_norm_fn", composed="layer_norm_of_1"),
        past_triton("rms_norm_fn", PARAMETERS, of="layer_norm_fn", composed="layer_norm_of_1"),
        LINEAR,
        launches(
            "_layer_norm_fwd",
            "norm_forward_of_1",
            (
                *("x", "weight", "bias", "eps"),
                *("residual", "out_dtype", "residual_dtype", "is_rms_norm"),
            ),
        ),
    ),
    required=False,
)
