"""What changes besides in every module that imports Triton, where no Triton can serve it.

The decorators get what they need to make kernels that are never launched: the functions around them
that have an op go to it, as on every device that Triton has no kernels for.
"""

from __future__ import annotations

from jetson_mamba.rewrite import ImportBeside, Placeholder

MODULE = "jetson_mamba.compat.without_triton"

EDITS = (
    Placeholder(
        of="triton",
        becomes=MODULE,
        failing="jetson_mamba.compat.no_triton",
        then=f"{MODULE}.explain(globals())",
    ),
    ImportBeside(beside="torch", module=MODULE),
)
