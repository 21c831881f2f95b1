"""What mamba_ssm takes of ``transformers.utils``, which is imported when it is used.

The names of the files of a model are those of every transformers.
"""

from jetson_mamba.compat.later import Name, function

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "pytorch_model.bin"
cached_file = function(Name("transformers.utils.hub", "cached_file", "to find a pretrained model"))
