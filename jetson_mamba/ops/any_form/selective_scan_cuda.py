"""The functions of the extension of the selective scan, which has had one form."""

from jetson_mamba.ops.any_form import passed_on
from jetson_mamba.ops.selective_scan import selective_scan_bwd as bwd
from jetson_mamba.ops.selective_scan import selective_scan_fwd as fwd

__all__ = ["bwd", "fwd"]
__getattr__ = passed_on("selective_scan_cuda")
