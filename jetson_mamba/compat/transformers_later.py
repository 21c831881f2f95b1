"""What mamba_ssm takes of transformers, which is imported when it is used.

The two names of files are those of every transformers; the rest stands for what transformers has,
and raises where that cannot be had.
"""

from jetson_mamba.compat.later import Later

GENERATION = "transformers.generation"
TEXT = "to generate text"

TextStreamer = Later(GENERATION, "TextStreamer", TEXT)
GenerateDecoderOnlyOutput = Later(GENERATION, "GenerateDecoderOnlyOutput", TEXT)
GreedySearchDecoderOnlyOutput = Later(
    GENERATION,
    "GreedySearchDecoderOnlyOutput",
    TEXT,
    there="jetson_mamba.compat.transformers_generation",
)
SampleDecoderOnlyOutput = Later(
    GENERATION,
    "SampleDecoderOnlyOutput",
    TEXT,
    there="jetson_mamba.compat.transformers_generation",
)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "pytorch_model.bin"
cached_file = Later("transformers.utils.hub", "cached_file", "to find a pretrained model")
