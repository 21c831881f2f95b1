"""The proof refuses a copy in which anything but the declared edits changed."""

from __future__ import annotations

import ast
import tokenize
from typing import Callable, NamedTuple

import pytest

from jetson_mamba.hook import copies
from jetson_mamba.rewrite import Override, Refused, nodes, rewrite
from jetson_mamba.rewrite.draft import Draft
from jetson_mamba.rewrite.edit import CORE

TEXT = "import torch\nx = 1\ny = 2\n"
TARGET = "mamba_ssm.ops.selective_scan_interface"


class Wrong(NamedTuple):
    """An edit of the statement ``x = 1``, whatever it does."""

    do: Callable[[Draft, ast.stmt], None]

    @property
    def turn(self) -> int:
        """It is of the core."""
        return CORE

    def concerns(self, source: bytes) -> bool:
        """Every text."""
        return True

    def find(self, draft: Draft) -> None:
        """Do it."""
        self.do(draft, draft.tree.body[1])
        draft.apply(2, self)


def replaced(by: str, further: int = 0) -> Callable[[Draft, ast.stmt], None]:
    """Replaces the statement and what stands ``further`` behind it; declares the statement."""

    def do(draft: Draft, statement: ast.stmt) -> None:
        start, end = draft.extent(statement)
        draft.replace(start, end + further, by)
        draft.substitute(statement, *nodes.statements("x = 3"))

    return do


def only_in_the_tree(draft: Draft, statement: ast.stmt) -> None:
    draft.substitute(statement, *nodes.statements("x = 3"))


def only_in_the_text(draft: Draft, statement: ast.stmt) -> None:
    draft.replace(*draft.extent(statement), "x = 3")


def twice(draft: Draft, statement: ast.stmt) -> None:
    replaced("x = 3")(draft, statement)
    draft.replace(*draft.extent(statement), "x = 3")


def written(statement: str) -> Callable[[Draft, ast.stmt], None]:
    return lambda draft, node: draft.replace_statement(node, [statement])


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        (replaced("x = 3\nz = 2", further=len("\ny = 2")), "differs elsewhere"),
        (replaced("x = 3", further=len("\ny = 2")), "differs elsewhere"),
        (replaced("x = 4"), "differs elsewhere"),
        (only_in_the_tree, "differs elsewhere"),
        (only_in_the_text, "differs elsewhere"),
        (replaced("x = 3\n"), "line 3 has moved"),
        (replaced("x = 3;", further=1), "line 3 has moved"),
        (replaced("x = ("), "does not parse"),
        (replaced("x = 3\0"), "does not parse"),
        (twice, "two edits overlap"),
        (written("import causal_conv1d_cuda"), "still imports causal_conv1d_cuda"),
        (written("from causal_conv1d import f"), "still imports causal_conv1d"),
        (written("from causal_conv1d.cpp_functions import f"), "imports causal_conv1d.cpp_func"),
        (written("import causal_conv1d.cpp_functions as f"), "imports causal_conv1d.cpp_functions"),
    ],
)
def test_what_an_edit_does_not_declare_is_refused(
    do: Callable[[Draft, ast.stmt], None], reason: str
) -> None:
    edits = (*copies.override(TARGET).edits, Wrong(do))
    with pytest.raises(Refused, match=reason):
        rewrite(TEXT, Override(TARGET, edits))


def test_what_an_older_python_says_of_a_null_byte_is_no_other_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A ValueError, where later ones say that it is no syntax."""
    edits = (*copies.override(TARGET).edits, Wrong(replaced("x = 3")))
    parse = ast.parse

    def parsed(text: str, *others: object) -> ast.Module:
        if text == TEXT.replace("x = 1", "x = 3"):
            raise ValueError("source code string cannot contain null bytes")
        return parse(text)

    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", parsed)
        with pytest.raises(Refused, match=r"does not parse \(source code string cannot"):
            rewrite(TEXT, Override(TARGET, edits))


def test_what_it_declares_is_proved() -> None:
    edits = (*copies.override(TARGET).edits, Wrong(replaced("x = 3")))
    assert rewrite(TEXT, Override(TARGET, edits)).text == TEXT.replace("x = 1", "x = 3")


@pytest.mark.parametrize(
    "error", [SyntaxError("no"), ValueError("null bytes"), tokenize.TokenError("no end")]
)
def test_a_text_that_does_not_parse_here_is_refused_with_what_helps(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def parsed(text: str, *others: object) -> ast.Module:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ast, "parse", parsed)
        with pytest.raises(Refused) as raised:
            rewrite(TEXT, copies.override(TARGET))
    assert str(raised.value) == f"it does not parse on this Python ({error})"
    assert raised.value.advice == "use a mamba_ssm that supports this Python, or another Python"
    assert raised.value.__cause__ is error
