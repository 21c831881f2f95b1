"""Functions that launch Triton kernels, with what computes the same where those cannot run."""

from __future__ import annotations

from jetson_mamba.rewrite import ImportBeside, Rebind

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def past_triton(function: str, op: str, parameters: tuple[str, ...]) -> Rebind:
    """The edit of a function, of which ``op`` is the one of ``jetson_mamba.ops``."""
    return Rebind(
        of=function,
        becomes=f"jetson_mamba.ops.where_triton_runs({function}, jetson_mamba.ops.{op})",
        parameters=parameters,
        unchecked=f"jetson_mamba.ops.{op}",
    )
