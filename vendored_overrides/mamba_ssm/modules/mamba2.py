"""The block of Mamba-2."""

from jetson_mamba.rewrite import Override

from ...blocks import IMPORT, by_graph

OVERRIDE = Override(
    target="mamba_ssm.modules.mamba2",
    edits=(
        IMPORT,
        *by_graph("Mamba2", ("u", "seqlen", "seq_idx", "cu_seqlens", "inference_params")),
    ),
    required=False,
)
