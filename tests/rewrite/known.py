"""Texts written for the tests, whose functions count as known."""

from __future__ import annotations

from textwrap import dedent
from typing import Callable

import pytest

from jetson_mamba.rewrite import Override, Rewritten, known, rewrite
from jetson_mamba.rewrite.closure import closure
from jetson_mamba.texts import Texts

Knows = Callable[..., Rewritten]


def rewrite_as_known(
    monkeypatch: pytest.MonkeyPatch, text: str, override: Override, *functions: str
) -> Rewritten:
    """The copy of a text whose ``functions`` are those of a release."""
    texts = Texts(override.target, dedent(text))
    digests = {name: {closure(texts, name).digest: ["0.1"]} for name in functions}
    monkeypatch.setattr(known, "_digests", lambda: {texts.target: digests})
    return rewrite(dedent(text), override, texts)
