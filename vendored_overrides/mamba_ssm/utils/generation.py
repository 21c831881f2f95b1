"""Text generation: two classes that transformers 5 no longer has, and events of a GPU.

Up to mamba-ssm 2.2.6.post3 this module imports the classes; where they are missing, ``import
mamba_ssm`` fails. In every release ``decode`` makes two CUDA events whether it is timed or not,
which a torch without CUDA refuses.
"""

from jetson_mamba.rewrite import Expression, ImportBeside, ImportFrom, Override

OVERRIDE = Override(
    target="mamba_ssm.utils.generation",
    edits=(
        ImportFrom(
            of="transformers.generation",
            becomes="jetson_mamba.compat.transformers_generation",
            names=("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput"),
        ),
        ImportBeside(beside="torch", module="jetson_mamba.compat.cuda_events"),
        Expression(
            of="torch.cuda.Event",
            becomes="jetson_mamba.compat.cuda_events.event",
            parameter="enable_timing",
        ),
        Expression(
            of="torch.cuda.synchronize",
            becomes="jetson_mamba.compat.cuda_events.synchronize",
            parameter="enable_timing",
        ),
    ),
    required=False,
)
