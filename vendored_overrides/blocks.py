"""The blocks, whose forward pass and step of decoding a CUDA graph launches where it can."""

from __future__ import annotations

from jetson_mamba.rewrite import ImportBeside, Rebind

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def by_graph(block: str, forward: tuple[str, ...]) -> tuple[Rebind, ...]:
    """The edits of a class and its methods; ``forward`` are the parameters of the first."""
    step = ("hidden_states", "conv_state", "ssm_state")
    return tuple(
        Rebind(
            of=f"{block}.{method}",
            becomes=f"jetson_mamba.ops.{method}_by_graph({block}.{method})",
            parameters=("self", *parameters),
        )
        for method, parameters in (("forward", forward), ("step", step))
    )
