"""While a text is rewritten no cycles are looked for; afterwards all is as it was."""

from __future__ import annotations

import gc
from typing import Iterator

import pytest

from jetson_mamba.hook import copies
from jetson_mamba.rewrite import Refused, known, rewrite

TARGET = "mamba_ssm.utils.hf"


@pytest.fixture(params=[True, False], ids=["collecting", "not collecting"])
def collects(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether the collector is at work when a text is rewritten."""
    before = gc.isenabled()
    (gc.enable if request.param else gc.disable)()
    yield request.param
    (gc.enable if before else gc.disable)()


@pytest.mark.parametrize("text", ["import (", "x = 1\n"], ids=["refused", "unchanged"])
def test_the_collector_is_left_as_it_was(
    text: str, collects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    during = []
    make = known.Known.__init__

    def noting(self: known.Known, *given: object) -> None:
        during.append(gc.isenabled())
        make(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(known.Known, "__init__", noting)
    override = copies.override(TARGET)
    try:
        rewrite(text, override._replace(required=False))
    except Refused:
        assert text == "import ("
    assert during == [False]
    assert gc.isenabled() is collects
