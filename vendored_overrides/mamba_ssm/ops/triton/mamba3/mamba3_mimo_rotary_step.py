"""The rotation in a decoding step of Mamba-3."""

from .....mamba3 import override

OVERRIDE = override(
    "mamba_ssm.ops.triton.mamba3.mamba3_mimo_rotary_step.apply_rotary_qk_inference_fwd",
    (
        *("q", "k", "angle_state", "angle_proj", "dt", "bias_q", "bias_k"),
        *("inplace", "conjugate", "rotate_pairwise"),
    ),
)
