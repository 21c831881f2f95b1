"""The block of Mamba-1."""

from jetson_mamba.rewrite import Override

from ...blocks import IMPORT, block_edits

OVERRIDE = Override(
    target="mamba_ssm.modules.mamba_simple",
    edits=(
        IMPORT,
        *block_edits(
            "Mamba",
            ("hidden_states", "inference_params"),
            {"forward": ("in_proj", "dt_proj"), "step": ("dt_proj",)},
        ),
    ),
    required=False,
)
