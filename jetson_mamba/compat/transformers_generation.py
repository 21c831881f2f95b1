"""What mamba_ssm takes of ``transformers.generation``, which is imported when it is used."""

from __future__ import annotations

from typing import Any

from jetson_mamba.compat.later import Name, a_class


def _class(name: str, there: str = "") -> Any:
    return a_class(Name("transformers.generation", name, "to generate text", there))


REMOVED = "jetson_mamba.compat.transformers_removed"

TextStreamer = _class("TextStreamer")
GenerateDecoderOnlyOutput = _class("GenerateDecoderOnlyOutput")
GreedySearchDecoderOnlyOutput = _class("GreedySearchDecoderOnlyOutput", REMOVED)
SampleDecoderOnlyOutput = _class("SampleDecoderOnlyOutput", REMOVED)
