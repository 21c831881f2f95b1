"""Tokens one after another are those of whole passes, on a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.releases.test_blocks import python


@pytest.mark.parametrize("check", ["greedy", "sampled", "unequal", "hybrid"])
def test_tokens_have_the_logits_of_whole_passes(check: str, tmp_path: Path) -> None:
    printed = python(
        "2.3.2.post1", tmp_path, "-W", "ignore", "-m", "tests.modules.generated", f"{check}_cpu"
    )
    found = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert len(found) >= 2
    assert {name: number for name, number in found if not float(number) <= 5e-6} == {}
