"""The outputs of each chunk of Mamba-2's scan, which programs launch by themselves."""

from jetson_mamba.rewrite import Override

from ....launchers import IMPORT, past_triton

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.ssd_chunk_scan",
    edits=(
        IMPORT,
        past_triton(
            "_chunk_scan_fwd",
            "chunk_scan_forward",
            ("cb", "x", "dt", "dA_cumsum", "C", "states", "D", "z", "seq_idx"),
        ),
        past_triton(
            "chunk_scan",
            "chunk_scan",
            ("B", "C", "x", "dt", "dA_cumsum", "prev_states", "D", "z"),
        ),
    ),
    required=False,
)
