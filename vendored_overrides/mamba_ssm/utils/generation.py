"""Text generation: two classes that transformers 5 no longer has.

Up to mamba-ssm 2.2.6.post3 this module imports them; where they are missing, ``import
mamba_ssm`` fails. Later releases import the class that took their place, and are left alone.
"""

from jetson_mamba.rewrite import ImportFrom, Override

OVERRIDE = Override(
    target="mamba_ssm.utils.generation",
    edits=(
        ImportFrom(
            of="transformers.generation",
            becomes="jetson_mamba.compat.transformers_generation",
            names=("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput"),
        ),
    ),
    required=False,
)
