"""The norms that are Triton kernels, with what computes them where those cannot run.

Each function that a model calls goes past its autograd function while a graph is traced, where no
gradient is recorded, and on a device that Triton has no kernels for.
"""

from __future__ import annotations

from jetson_mamba.rewrite import Dispatch, ImportBeside

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def past_triton(
    function: str,
    parameters: tuple[str, ...],
    of: str,
    call: str = "LayerNormFn.apply",
    composed: str | None = None,
) -> Dispatch:
    """The edit of a function of one of these modules, and of ``jetson_mamba.ops``.

    ``of`` is the op of the module's autograd function, which takes ``parameters``, with those that
    ``function`` has not; ``composed``, where it is not ``of``, the op that takes them in this order
    and is differentiated twice.
    """
    return Dispatch(
        inside=function,
        call=call,
        condition="jetson_mamba.ops.through_norm_autograd({given})",
        becomes=f"jetson_mamba.ops.{function}",
        parameters=tuple(each for each in parameters if each != "is_rms_norm" or function == of),
        composed=f"jetson_mamba.ops.{composed or of}",
        order=parameters,
        unchecked=True,
    )


# The same in every release.
LINEAR = past_triton(
    "layer_norm_linear_fn",
    (
        *("x", "norm_weight", "norm_bias", "linear_weight", "linear_bias", "residual", "eps"),
        *("prenorm", "residual_in_fp32", "is_rms_norm"),
    ),
    of="layer_norm_linear_fn",
    call="LayerNormLinearFn.apply",
)
