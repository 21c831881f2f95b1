"""One step of decoding, which in every release is the launch of a Triton kernel.

On a device that Triton has no kernels for, the function goes to the op of the same name. What
else the module has, its reference among it, is upstream's own.
"""

from jetson_mamba.rewrite import ImportBeside, Override, Rebind

OVERRIDE = Override(
    target="mamba_ssm.ops.triton.selective_state_update",
    edits=(
        ImportBeside(beside="torch", module="jetson_mamba.ops"),
        Rebind(
            of="selective_state_update",
            becomes="jetson_mamba.ops.where_triton_runs("
            "selective_state_update, jetson_mamba.ops.selective_state_update)",
            parameters=(
                "state",
                "x",
                "dt",
                "A",
                "B",
                "C",
                "D",
                "z",
                "dt_bias",
                "dt_softplus",
                "state_batch_indices",
            ),
            unchecked="jetson_mamba.ops.selective_state_update",
        ),
    ),
    required=False,
)
