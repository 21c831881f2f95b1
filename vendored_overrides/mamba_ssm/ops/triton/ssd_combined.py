"""Mamba-2, whose autograd function calls the convolution.

The kernels of Mamba-2 are Triton's. On a device that Triton has none for, while a graph is traced,
and where no gradient is recorded, the two functions that a model calls go to the op ``ssd``,
before they enter their autograd functions.
"""

from jetson_mamba.rewrite import Dispatch, ImportBeside, Override

from ....extensions import CONVOLUTION, IMPORTS
from ....launchers import past_triton

CHUNK_SCAN = Dispatch(
    inside="mamba_chunk_scan_combined",
    call="MambaChunkScanCombinedFn.apply",
    condition="jetson_mamba.ops.through_scan_autograd({given})",
    becomes="jetson_mamba.ops.mamba_chunk_scan_combined",
    parameters=(
        "x",
        "dt",
        "A",
        "B",
        "C",
        "chunk_size",
        "D",
        "z",
        "dt_bias",
        "initial_states",
        "seq_idx",
        "cu_seqlens",
        "dt_softplus",
        "dt_limit",
        "return_final_states",
        "return_varlen_states",
        "state_dtype",
    ),
    unchecked=True,
)

SPLIT_CONV1D_SCAN = Dispatch(
    inside="mamba_split_conv1d_scan_combined",
    call="MambaSplitConv1dScanCombinedFn.apply",
    condition=(
        "jetson_mamba.ops.through_mixer_autograd({given}) and "
        "jetson_mamba.ops.may_be_fused(norm=rmsnorm_weight, out_proj=outproj_weight)"
    ),
    becomes="jetson_mamba.ops.mamba_split_conv1d_scan_combined",
    parameters=(
        "zxbcdt",
        "conv1d_weight",
        "conv1d_bias",
        "dt_bias",
        "A",
        "D",
        "chunk_size",
        "initial_states",
        "seq_idx",
        "dt_limit",
        "return_final_states",
        "activation",
        "rmsnorm_weight",
        "rmsnorm_eps",
        "outproj_weight",
        "outproj_bias",
        "headdim",
        "ngroups",
        "norm_before_gate",
        "state_dtype",
    ),
    unchecked=True,
)

# What programs with an autograd function of their own call. The forward pass is made of functions
# of other modules, which go past Triton themselves.
BACKWARD = past_triton(
    "_mamba_chunk_scan_combined_bwd",
    "chunk_scan_combined_backward",
    (
        *("dout", "x", "dt", "A", "B", "C", "out", "chunk_size", "D", "z", "dt_bias"),
        *("initial_states", "dfinal_states", "seq_idx", "dt_softplus", "dt_limit"),
        *("dx", "ddt", "dB", "dC", "dz", "recompute_output", "state_dtype"),
    ),
)

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.ssd_combined",
    edits=(
        *IMPORTS,
        *CONVOLUTION,
        CHUNK_SCAN,
        SPLIT_CONV1D_SCAN,
        BACKWARD,
        ImportBeside(beside="torch", module="jetson_mamba.ops"),
    ),
)
