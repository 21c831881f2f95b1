"""Mamba-1, whose autograd functions call the convolution or the selective scan.

The compiled extension of the scan has had one signature in every release, which the op takes
as it is. ``mamba_inner_fn`` and ``selective_scan_fn`` go past their autograd functions where
``jetson_mamba.dispatch.paths`` says so. ``MambaInnerFn`` asks for CUDA's autocast only, since it
ran nowhere else; it also runs on a CPU here, so it asks for that of its input's device.
"""

from jetson_mamba.rewrite import Dispatch, Expression, ImportBeside, Override, Rebind, Rename

from ...extensions import CONVOLUTION, IMPORTS

AUTOCAST = (
    Expression(
        of="torch.is_autocast_enabled()",
        becomes="jetson_mamba.ops.autocast_dtype(xz.device) is not None",
        parameter="xz",
    ),
    Expression(
        of="torch.get_autocast_gpu_dtype()",
        becomes="jetson_mamba.ops.autocast_dtype(xz.device)",
        parameter="xz",
    ),
)

SCAN = Dispatch(
    inside="selective_scan_fn",
    call="SelectiveScanFn.apply",
    condition="jetson_mamba.ops.through_autograd({first})",
    becomes="jetson_mamba.ops.selective_scan_fn",
    parameters=(
        "u",
        "delta",
        "A",
        "B",
        "C",
        "D",
        "z",
        "delta_bias",
        "delta_softplus",
        "return_last_state",
    ),
)

INNER = Dispatch(
    inside="mamba_inner_fn",
    call="MambaInnerFn.apply",
    condition="jetson_mamba.ops.through_inner_autograd({given})",
    becomes="jetson_mamba.ops.mamba_inner_fn",
    parameters=(
        "xz",
        "conv1d_weight",
        "conv1d_bias",
        "x_proj_weight",
        "delta_proj_weight",
        "out_proj_weight",
        "out_proj_bias",
        "A",
        "B",
        "C",
        "D",
        "delta_bias",
        "B_proj_bias",
        "C_proj_bias",
        "delta_softplus",
        "checkpoint_lvl",
        "b_rms_weight",
        "c_rms_weight",
        "dt_rms_weight",
        "b_c_dt_rms_eps",
    ),
)

# The norms of dt, B and C, inside of the autograd function: a Triton kernel.
RMS_NORM = Rebind(
    of="rms_norm_forward",
    becomes="jetson_mamba.ops.where_triton_runs("
    "rms_norm_forward, jetson_mamba.ops.rms_norm_forward)",
    parameters=("x", "weight", "bias", "eps", "is_rms_norm"),
    unchecked="jetson_mamba.ops.rms_norm_forward",
)

OVERRIDE = Override(
    target="mamba_ssm.ops.selective_scan_interface",
    edits=(
        *IMPORTS,
        *CONVOLUTION,
        *AUTOCAST,
        Rename("selective_scan_cuda.fwd", "jetson_mamba.ops.selective_scan_fwd"),
        Rename("selective_scan_cuda.bwd", "jetson_mamba.ops.selective_scan_bwd"),
        SCAN,
        INNER,
        RMS_NORM,
        # For forks, whose autograd functions have other names and are traced as they are.
        Rename("torch.addmm", "jetson_mamba.ops.addmm", keyword="out"),
        ImportBeside(beside="torch", module="jetson_mamba.ops"),
    ),
)
