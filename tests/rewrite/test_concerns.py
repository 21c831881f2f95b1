"""An edit knows from a text's bytes whether it may change it: it is asked before text is parsed."""

from __future__ import annotations

import pytest

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.rewrite import ImportBeside
from tools.releases import release_path

LATEST = "2.3.2.post1"


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_changes_a_text_says_so_beforehand(target: str) -> None:
    path = release_path(LATEST) / (target.replace(".", "/") + ".py")
    if not path.exists():
        path = release_path("2.2.2") / (target.replace(".", "/") + ".py")
    if not path.exists():
        path = release_path("1.2.0") / (target.replace(".", "/") + ".py")
    source = path.read_bytes()
    _, rewritten = copies.examine(target, source, str(path))
    # An import of ours beside another is made for what else was changed.
    changes = [each for each in rewritten.applied if not isinstance(each.edit, ImportBeside)]
    assert changes
    for each in changes:
        assert each.edit.concerns(source), each


@pytest.mark.parametrize("target", TARGETS)
def test_a_text_without_a_word_of_it_concerns_no_edit(target: str) -> None:
    for edit in copies.override(target).edits:
        assert edit.concerns(b"x = 1\n") is False, edit
