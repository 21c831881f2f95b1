"""The norms that are Triton kernels, and where they go otherwise.

Each function that a model calls goes past its autograd function while a graph is traced, where no
gradient is recorded, and on a device that Triton has no kernels for.
"""

from __future__ import annotations

from jetson_mamba.rewrite import Dispatch, ImportBeside

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def past_triton(
    function: str, parameters: tuple[str, ...], call: str = "LayerNormFn.apply"
) -> Dispatch:
    """The edit of a function of one of these modules, and of ``jetson_mamba.ops``."""
    return Dispatch(
        inside=function,
        call=call,
        condition="jetson_mamba.ops.through_norm_autograd({first})",
        becomes=f"jetson_mamba.ops.{function}",
        parameters=parameters,
        # A fork's own norm is left as it is.
        optional=True,
    )


# The same in every release.
LINEAR = past_triton(
    "layer_norm_linear_fn",
    (
        *("x", "norm_weight", "norm_bias", "linear_weight", "linear_bias", "residual", "eps"),
        *("prenorm", "residual_in_fp32", "is_rms_norm"),
    ),
    call="LayerNormLinearFn.apply",
)
