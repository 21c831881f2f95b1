"""The blocks: launched by a CUDA graph, or calling their projections; a step of several tokens."""

from __future__ import annotations

from jetson_mamba.rewrite import ImportBeside, Rebind

IMPORT = ImportBeside(beside="torch", module="jetson_mamba.ops")


def block_edits(
    block: str, forward: tuple[str, ...], multiplied: dict[str, tuple[str, ...]]
) -> tuple[Rebind, ...]:
    """The edits of a class and its methods.

    ``forward`` are the parameters of the first; ``multiplied`` names, by method, the projections by
    whose weights it multiplies.
    """
    step = ("hidden_states", "conv_state", "ssm_state")
    edits = []
    for method, parameters in (("forward", forward), ("step", step)):
        own = f"{block}.{method}"
        if method == "step":
            own = f"jetson_mamba.ops.in_few_kernels({own})"
        becomes = (
            f"jetson_mamba.ops.calling_modules({block}.{method}, "
            f"jetson_mamba.ops.{method}_by_graph({own})"
            f"{''.join(f', {name!r}' for name in multiplied.get(method, ()))})"
        )
        if method == "step":
            becomes = f"jetson_mamba.ops.several_tokens({becomes})"
            becomes = f"jetson_mamba.ops.by_launches({becomes})"
        edits.append(
            Rebind(of=f"{block}.{method}", becomes=becomes, parameters=("self", *parameters))
        )
    return tuple(edits)
