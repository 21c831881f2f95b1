"""The norms that are Triton kernels, and where they go otherwise.

Each function that a model calls goes past its autograd function while a graph is traced, where no
gradient is recorded, and on a device that Triton has no kernels for.
"""

from __future__ import annotations

from jetson_mamba.rewrite import Dispatch, ImportBeside

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def past_triton(function: str, parameters: tuple[str, ...]) -> Dispatch:
    """The edit of a function of one of these modules, and of ``jetson_mamba.ops``."""
    return Dispatch(
        inside=function,
        call="LayerNormFn.apply",
        condition="jetson_mamba.ops.through_norm_autograd({first})",
        becomes=f"jetson_mamba.ops.{function}",
        parameters=parameters,
        # A fork's own norm is left as it is.
        optional=True,
    )
