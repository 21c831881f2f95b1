"""Mamba-3 with one input a step."""

from .....mamba3 import override

OVERRIDE = override(
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined.mamba3_siso_combined",
    (
        *("Q", "K", "V", "ADT", "DT", "Trap", "Q_bias", "K_bias"),
        *("Angles", "D", "Z", "Input_States", "chunk_size", "return_final_states", "cu_seqlens"),
    ),
)
