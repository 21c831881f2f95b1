"""Which functions of a text are those of a release, by what they are made of.

A function is *known* if its digest (:mod:`.closure`) is one of those in
``vendored_overrides/known.json``, which ``tools/known.py`` makes from the published texts, or in
``unreleased.json``, which it makes from a text that will be published.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from jetson_mamba import overrides
from jetson_mamba.rewrite.closure import Closure, closure
from jetson_mamba.texts import Texts

FILES = ("known.json", "unreleased.json")


class Known:
    """What is known of the functions of one text."""

    def __init__(self, texts: Texts) -> None:
        self._texts = texts
        self._closures: dict[str, Closure] = {}

    def releases(self, function: str) -> tuple[str, ...]:
        """The releases that have this function, with all that it is made of; empty if none."""
        digests = _digests().get(self._texts.target, {}).get(function, {})
        return tuple(digests.get(self._closure(function).digest, ()))

    def launches_triton(self, function: str) -> bool:
        """Whether Triton is among what a function is made of."""
        return self._closure(function).launches_triton

    def asks_for_device(self, function: str) -> bool:
        """Whether a function, or what it calls, asks which device a tensor is on."""
        return self._closure(function).asks_for_device

    def _closure(self, function: str) -> Closure:
        if function not in self._closures:
            self._closures[function] = closure(self._texts, function)
        return self._closures[function]


@lru_cache(maxsize=None)
def _digests() -> Any:
    found: dict[str, Any] = {}
    for file in FILES:
        for target, functions in json.loads((overrides.folder() / file).read_text()).items():
            for function, digests in functions.items():
                found.setdefault(target, {}).setdefault(function, {}).update(digests)
    return found
