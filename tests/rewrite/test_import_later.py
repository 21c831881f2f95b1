"""Which imports of transformers wait until they are used. Others stay."""

from __future__ import annotations

import pytest

from jetson_mamba.hook import copies
from jetson_mamba.rewrite import rewrite

GENERATION = copies.override("mamba_ssm.utils.generation")
HF = copies.override("mamba_ssm.utils.hf")
AT_USE = "jetson_mamba.compat.transformers_generation"
AT_ONCE = "jetson_mamba.compat.transformers_removed"


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("from transformers.generation import TextStreamer\n", AT_USE),
        ("from transformers.generation import (\n    TextStreamer as T,  # (\n)\n", AT_USE),
        (
            "x = 1; from transformers.generation import SampleDecoderOnlyOutput, TextStreamer",
            AT_USE,
        ),
        # Names that nothing of ours has: where one of them was removed the rest comes with it.
        ("from transformers.generation import SampleDecoderOnlyOutput, LogitsProcessor", AT_ONCE),
        # Whoever asks whether there is such a package is answered when it is asked.
        (
            "try:\n    from transformers.generation import SampleDecoderOnlyOutput\n"
            "except ImportError:\n    SampleDecoderOnlyOutput = None\n",
            AT_ONCE,
        ),
        (
            "def f():\n    from transformers.generation import GreedySearchDecoderOnlyOutput\n",
            AT_ONCE,
        ),
    ],
)
def test_names_of_transformers_wait_for_their_use_where_nothing_asks_for_them_before(
    text: str, becomes: str
) -> None:
    assert rewrite(text, GENERATION).text == text.replace("transformers.generation", becomes)


@pytest.mark.parametrize(
    "text",
    [
        "from transformers.generation import TextStreamer, LogitsProcessor\n",
        "from transformers.generation import *\n",
        "from transformers import TextStreamer\n",
        "import transformers.generation\n",
        "from .transformers.generation import TextStreamer\n",
        "from .transformers.generation import SampleDecoderOnlyOutput\n",
        "try:\n    from transformers.generation import TextStreamer\nfinally:\n    pass\n",
        "if FLAG:\n    from transformers.generation import TextStreamer\n",
        "def f():\n    from transformers.generation import TextStreamer\n",
    ],
)
def test_other_imports_of_transformers_stay(text: str) -> None:
    assert rewrite(text, GENERATION).text == text
    assert rewrite(text, HF).text == text


def test_the_files_of_a_model_are_named_without_transformers() -> None:
    text = (
        "from transformers.utils import WEIGHTS_NAME, CONFIG_NAME\n"
        "from transformers.utils.hub import cached_file\n"
        "from transformers.utils.hub import cached_file, cached_files\n"
    )
    first, second, third = text.splitlines()
    ours = "jetson_mamba.compat.transformers_utils"
    assert rewrite(text, HF).text.splitlines() == [
        first.replace("transformers.utils", ours),
        second.replace("transformers.utils.hub", ours),
        third,
    ]
