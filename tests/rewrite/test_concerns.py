"""An edit knows from a text's bytes whether it may change it: it is asked before text is parsed."""

from __future__ import annotations

import pytest

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.rewrite import (
    Absent,
    Call,
    Dispatch,
    Edit,
    Expression,
    Import,
    ImportBeside,
    ImportLater,
    Placeholder,
    Rebind,
    Rename,
)
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


EDITS: tuple[tuple[Edit, tuple[str, ...]], ...] = (
    (Call(("a.b.wanted",), "c", (), 0), ("wanted",)),
    (Rename("a.b.wanted", "c"), ("wanted",)),
    (Expression("a.b.wanted(x).d", "c", "x"), ("d",)),
    (Expression("a.b.wanted(x)", "c", "x"), ("wanted",)),
    (Rebind("A.wanted", "c", ()), ("wanted",)),
    (Rebind("wanted", "c", ()), ("wanted",)),
    (Absent("a.wanted", "c", "beside"), ("wanted", "beside")),
    (Dispatch("wanted", "b", "c", "d", ()), ("wanted",)),
    (Placeholder("wanted", "c"), ("wanted",)),
    (Import("wanted", "c"), ("wanted",)),
    (ImportLater("wanted.module", "c", ("d",)), ("wanted.module",)),
)


@pytest.mark.parametrize(("edit", "words"), EDITS)
def test_the_last_name_is_what_a_text_must_have(edit: Edit, words: tuple[str, ...]) -> None:
    """However it is imported, as by ``from a.b import wanted``."""
    assert edit.concerns(" ".join(words).encode())
    for left_out in words:
        others = " ".join(each for each in words if each != left_out)
        assert not edit.concerns(f"a b A c {others}".encode())
