"""The block of Mamba-2."""

from jetson_mamba.rewrite import Override

from ...blocks import IMPORT, block_edits

OVERRIDE = Override(
    target="mamba_ssm.modules.mamba2",
    edits=(
        IMPORT,
        *block_edits("Mamba2", ("u", "seqlen", "seq_idx", "cu_seqlens", "inference_params"), {}),
    ),
    required=False,
)
