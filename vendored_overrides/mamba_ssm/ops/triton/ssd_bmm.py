"""The products of the steps of a chunk, which Mamba-2's scan launches."""

from jetson_mamba.rewrite import Override

from ....launchers import IMPORT, past_triton

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.ssd_bmm",
    edits=(
        IMPORT,
        past_triton(
            "_bmm_chunk_fwd",
            "bmm_chunk_forward",
            ("a", "b", "chunk_size", "seq_idx", "causal", "output_dtype"),
        ),
    ),
    required=False,
)
