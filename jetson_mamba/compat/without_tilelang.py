"""What modules of mamba_ssm import as ``tilelang`` where their kernels cannot be compiled."""

from __future__ import annotations

from jetson_mamba.compat.absent import Absent


def __getattr__(name: str) -> Absent:
    if name.startswith("__"):
        raise AttributeError(name)
    return Absent("tilelang", f"tilelang.{name}")
