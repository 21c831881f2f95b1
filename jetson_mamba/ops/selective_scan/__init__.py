"""The selective scan, Mamba-1's recurrence: what modified copies call."""

from .op import OP, selective_scan_bwd, selective_scan_fn, selective_scan_fwd

__all__ = ["OP", "selective_scan_bwd", "selective_scan_fn", "selective_scan_fwd"]
