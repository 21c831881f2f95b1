"""The norms of a Mamba-2 mixer, with the gate in them."""

from jetson_mamba.rewrite import Override
from vendored_overrides.norms import IMPORT, past_triton

PARAMETERS = (
    "x",
    "weight",
    "bias",
    "z",
    "eps",
    "group_size",
    "norm_before_gate",
    "is_rms_norm",
)

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.layernorm_gated",
    edits=(
        IMPORT,
        past_triton("layernorm_fn", PARAMETERS, of="layernorm_fn"),
        past_triton("rmsnorm_fn", PARAMETERS, of="layernorm_fn"),
    ),
    required=False,
)
