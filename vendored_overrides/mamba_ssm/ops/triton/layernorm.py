"""The norms of the models of 1.x, with the residual in them."""

from jetson_mamba.rewrite import Override
from vendored_overrides.norms import IMPORT, past_triton

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
        past_triton("layer_norm_fn", PARAMETERS, of="layer_norm_fn"),
        past_triton("rms_norm_fn", PARAMETERS, of="layer_norm_fn"),
    ),
    required=False,
)
