"""The functions of Mamba-3, which launch kernels that few GPUs have.

On others, on a CPU, and where what the kernels are written in cannot be imported, an op of the same
name computes them.
"""

from __future__ import annotations

from jetson_mamba.rewrite import ImportBeside, Override, Rebind

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def override(target: str, parameters: tuple[str, ...], *languages: str) -> Override:
    """That of a module whose function, and the op, are called as the last part of ``target``.

    ``languages`` are what its kernels are written in beside Triton.
    """
    module, _, function = target.rpartition(".")
    named = "".join(f", {each!r}" for each in languages)
    op = f"jetson_mamba.ops.{function}"
    return Override(
        target=module,
        edits=(
            IMPORT,
            Rebind(
                of=function,
                becomes=f"jetson_mamba.ops.on_a_gpu({function}, {op}{named})",
                parameters=parameters,
                unchecked=op,
            ),
        ),
        required=False,
    )
