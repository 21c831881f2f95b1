"""The gate of a gated MLP, which ``swiglu`` and the mixer of Mamba-2 launch as Triton kernels."""

from __future__ import annotations

from jetson_mamba.rewrite import ImportBeside, Override, Rebind


def past_triton(function: str, op: str, parameters: tuple[str, ...]) -> Rebind:
    """The edit of a function that launches a kernel."""
    return Rebind(
        of=function,
        becomes=f"jetson_mamba.ops.where_triton_runs({function}, jetson_mamba.ops.{op})",
        parameters=parameters,
        unchecked=f"jetson_mamba.ops.{op}",
    )


OVERRIDE = Override(
    target="mamba_ssm.ops.triton.k_activations",
    edits=(
        ImportBeside(beside="torch", module="jetson_mamba.ops"),
        past_triton("_swiglu_fwd", "swiglu_forward", ("xy", "out")),
        past_triton(
            "_swiglu_bwd", "swiglu_backward", ("xy", "dout", "dxy", "recompute_output", "out")
        ),
    ),
    required=False,
)
