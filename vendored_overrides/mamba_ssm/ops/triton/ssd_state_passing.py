"""The states at the start of each chunk of Mamba-2's scan, which programs launch by themselves."""

from jetson_mamba.rewrite import Override

from ....launchers import IMPORT, past_triton

STATES = ("states", "dA_chunk_cumsum", "initial_states")

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.ssd_state_passing",
    edits=(
        IMPORT,
        past_triton(
            "_state_passing_fwd",
            "state_passing_forward",
            (*STATES, "seq_idx", "chunk_size", "out_dtype"),
        ),
        past_triton("state_passing", "state_passing", STATES),
    ),
    required=False,
)
