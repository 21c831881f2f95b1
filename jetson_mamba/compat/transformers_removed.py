"""``transformers.generation`` with the two output classes that transformers 5 removed.

Where transformers has them, these are its own; where it has not, both are
``GenerateDecoderOnlyOutput``, which took their place with the same fields. Everything else is
what ``transformers.generation`` has.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

generation: Any = import_module("transformers.generation")


def __getattr__(name: str) -> Any:
    if name in ("GreedySearchDecoderOnlyOutput", "SampleDecoderOnlyOutput"):
        try:
            return getattr(generation, name)
        except AttributeError:
            return generation.GenerateDecoderOnlyOutput
    return getattr(generation, name)
