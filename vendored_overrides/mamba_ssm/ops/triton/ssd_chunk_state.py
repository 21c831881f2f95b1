"""What the chunks of Mamba-2's scan add to its state, which programs launch by themselves."""

from jetson_mamba.rewrite import Override

from ....launchers import IMPORT, past_triton

STEPS = ("B", "x", "dt", "dA_cumsum")

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.ssd_chunk_state",
    edits=(
        IMPORT,
        past_triton(
            "_chunk_cumsum_fwd",
            "chunk_cumsum_forward",
            ("dt", "A", "chunk_size", "dt_bias", "dt_softplus", "dt_limit"),
        ),
        past_triton(
            "_chunk_state_fwd",
            "chunk_state_forward",
            (*STEPS, "seq_idx", "states", "states_in_fp32"),
        ),
        past_triton(
            "chunk_state_varlen", "chunk_state_varlen", (*STEPS, "cu_seqlens", "chunk_states")
        ),
        past_triton("chunk_state", "chunk_state", (*STEPS, "states_in_fp32")),
    ),
    required=False,
)
