"""A step of Mamba-3's state, in CuTe."""

from .....mamba3 import override

OVERRIDE = override(
    "mamba_ssm.ops.cute.mamba3.mamba3_step_fn.mamba3_step_fn",
    (
        *("state", "Bstate", "Xstate", "A", "B", "C", "D", "x", "dt", "trap", "xproj"),
        *("outproj", "state_out", "out", "z", "zproj", "tile_D", "num_warps"),
    ),
    "cute",
)
