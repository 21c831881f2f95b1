"""Models of the Hugging Face hub: transformers is imported where one is loaded."""

from jetson_mamba.rewrite import ImportLater, Override

BECOMES = "jetson_mamba.compat.transformers_utils"

OVERRIDE = Override(
    target="mamba_ssm.utils.hf",
    edits=(
        ImportLater("transformers.utils", BECOMES, ("CONFIG_NAME", "WEIGHTS_NAME", "cached_file")),
        ImportLater("transformers.utils.hub", BECOMES, ("cached_file",)),
    ),
    required=False,
)
