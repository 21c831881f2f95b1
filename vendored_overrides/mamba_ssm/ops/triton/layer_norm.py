"""The norms of the models from 2.0 on."""

from jetson_mamba.rewrite import Override

from ....launchers import past_triton as launches
from ....norms import IMPORT, LINEAR, past_triton

PARAMETERS = (
    "x",
    "weight",
    "bias",
    "residual",
    "x1",
    "weight1",
    "bias1",
    "eps",
    "dropout_p",
    "rowscale",
    "prenorm",
    "residual_in_fp32",
    "is_rms_norm",
    "return_dropout_mask",
)

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.layer_norm",
    edits=(
        IMPORT,
        past_triton("layer_norm_fn", PARAMETERS, of="layer_norm_fn", composed="layer_norm_again"),
        past_triton("rms_norm_fn", PARAMETERS, of="layer_norm_fn", composed="layer_norm_again"),
        LINEAR,
        launches(
            "_layer_norm_fwd",
            "norm_forward",
            (
                *("x", "weight", "bias", "eps", "residual", "x1", "weight1"),
                *(
                    "bias1",
                    "dropout_p",
                    "rowscale",
                    "out_dtype",
                    "residual_dtype",
                    "is_rms_norm",
                    "return_dropout_mask",
                ),
            ),
        ),
    ),
    required=False,
)
