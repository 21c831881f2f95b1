"""The norms of a Mamba-2 mixer, with the gate in them."""

from jetson_mamba.rewrite import Override

from ....launchers import past_triton as launches
from ....norms import IMPORT, past_triton

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
        launches("_layer_norm_fwd", "gated_norm_forward", (*PARAMETERS, "out")),
        launches(
            "_layer_norm_bwd",
            "gated_norm_backward",
            ("dy", *PARAMETERS, "mean", "rstd", "recompute_output", "dz", "out"),
        ),
    ),
    required=False,
)
