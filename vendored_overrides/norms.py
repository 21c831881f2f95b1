"""The norms that are Triton kernels, and where they go otherwise.

Each function that a model calls goes past its autograd function while a graph is traced, where no
gradient is recorded, and on a device that Triton has no kernels for.
"""

from __future__ import annotations

from jetson_mamba.rewrite import Dispatch, ImportBeside

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def past_triton(function: str, parameters: tuple[str, ...], of: str) -> Dispatch:
    """The edit of a function of one of these modules, and of ``jetson_mamba.ops``.

    ``of`` is the op of the module's autograd function, which takes ``parameters``, with those that
    ``function`` has not.
    """
    return Dispatch(
        inside=function,
        call="LayerNormFn.apply",
        condition="jetson_mamba.ops.through_norm_autograd({first})",
        becomes=f"jetson_mamba.ops.{function}",
        parameters=tuple(each for each in parameters if each != "is_rms_norm" or function == of),
        composed=f"jetson_mamba.ops.{of}",
        order=parameters,
        unchecked=True,
    )
