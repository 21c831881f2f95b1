"""Mamba-3 with several inputs a step, whose kernels are in tilelang."""

from .....mamba3 import override

OVERRIDE = override(
    "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo.mamba3_mimo",
    (
        *("Q", "K", "V", "ADT", "DT", "Trap", "Q_bias", "K_bias"),
        *("MIMO_V", "MIMO_Z", "MIMO_Out", "Angles", "D", "Z", "chunk_size"),
        *("rotary_dim_divisor", "dtype", "return_state", "cu_seqlens"),
        *("fuse_pregate_headwise_rms_norm", "outproj_norm_weight", "outproj_norm_eps"),
    ),
    "tilelang",
)
