"""What mamba_ssm takes of ``transformers.generation``, which is imported when it is used."""

from jetson_mamba.compat.later import Later

TEXT = "to generate text"
REMOVED = "jetson_mamba.compat.transformers_removed"

TextStreamer = Later("transformers.generation", "TextStreamer", TEXT)
GenerateDecoderOnlyOutput = Later("transformers.generation", "GenerateDecoderOnlyOutput", TEXT)
GreedySearchDecoderOnlyOutput = Later(
    "transformers.generation", "GreedySearchDecoderOnlyOutput", TEXT, there=REMOVED
)
SampleDecoderOnlyOutput = Later(
    "transformers.generation", "SampleDecoderOnlyOutput", TEXT, there=REMOVED
)
