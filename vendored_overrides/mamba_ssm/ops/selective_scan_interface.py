"""Mamba-1: the convolution and the scan in ``MambaInnerFn``, and the scan in ``SelectiveScanFn``.

The compiled extension of the scan has had one signature in every release, which the op takes
as it is. ``MambaInnerFn`` asks for CUDA's autocast only, since it ran nowhere else; it also runs
on a CPU here, so it asks for that of its input's device.
"""

from jetson_mamba.rewrite import Expression, Override, Rename
from vendored_overrides.extensions import CONVOLUTION, IMPORTS

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

OVERRIDE = Override(
    target="mamba_ssm.ops.selective_scan_interface",
    edits=(
        *IMPORTS,
        *CONVOLUTION,
        *AUTOCAST,
        Rename("selective_scan_cuda.fwd", "jetson_mamba.ops.selective_scan_fwd"),
        Rename("selective_scan_cuda.bwd", "jetson_mamba.ops.selective_scan_bwd"),
    ),
)
