"""The block of Mamba-2 that has no step of decoding."""

from jetson_mamba.rewrite import Override

from ...blocks import IMPORT, block_edits

OVERRIDE = Override(
    target="mamba_ssm.modules.mamba2_simple",
    edits=(IMPORT, *block_edits("Mamba2Simple", ("u", "seq_idx"), {})),
    required=False,
)
