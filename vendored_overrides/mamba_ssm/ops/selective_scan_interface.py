"""Mamba-1: the convolution and the scan in ``MambaInnerFn``, and the scan in ``SelectiveScanFn``.

The compiled extension of the scan has had one signature in every release, which the op takes
as it is.
"""

from jetson_mamba.rewrite import Override, Rename
from vendored_overrides.extensions import CONVOLUTION, IMPORTS

OVERRIDE = Override(
    target="mamba_ssm.ops.selective_scan_interface",
    edits=(
        *IMPORTS,
        *CONVOLUTION,
        Rename("selective_scan_cuda.fwd", "jetson_mamba.ops.selective_scan_fwd"),
        Rename("selective_scan_cuda.bwd", "jetson_mamba.ops.selective_scan_bwd"),
    ),
)
