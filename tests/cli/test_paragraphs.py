"""What is printed of a paragraph, and in which form `run` is told what to run."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from jetson_mamba.cli import output
from jetson_mamba.cli.run import _kind
from jetson_mamba.errors import CannotRun


@pytest.mark.parametrize(
    ("style", "expected"),
    [
        ("bold|", "\x1b[1mwrong\x1b[0m  it is not\n"),
        ("bold", "\x1b[1mwrong  it is not\x1b[0m\n"),
        ("", "wrong  it is not\n"),
    ],
)
def test_a_style_is_of_the_first_word_or_of_all(style: str, expected: str) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", width=60)
    output.say(console, "wrong  it is not", 7, style)
    assert file.getvalue() == expected


def test_further_lines_stand_below_the_first_ones_text() -> None:
    file = io.StringIO()
    output.say(Console(file=file, width=16), "why    one two three four", 7)
    assert file.getvalue() == "why    one two\n       three\n       four\n"
    assert output.lines("", 10) == [""]
    assert output.lines("a-very-long-word-and x", 8) == ["a-very-long-word-and", "x"]


@pytest.mark.parametrize(
    ("given", "kind", "left"),
    [
        (["-m", "module", "x"], "-m", ["module", "x"]),
        (["-mmodule", "x"], "-m", ["module", "x"]),
        (["-c", "code", "-h"], "-c", ["code", "-h"]),
        (["-ccode"], "-c", ["code"]),
        (["-", "x"], "-", ["-", "x"]),
    ],
)
def test_a_form_is_known_by_the_first_word(given: list[str], kind: str, left: list[str]) -> None:
    words = [*given]
    assert _kind(words) == kind
    assert words == left


@pytest.mark.parametrize("given", [["script.py", "-m"], ["a folder"], []])
def test_anything_else_is_a_file(given: Any) -> None:
    words = [*given]
    assert _kind(words) not in ("-m", "-c", "-")
    assert words == given


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["-m"], "run -m: expected the name of a module after it"),
        (["-c"], "run -c: expected code after it"),
        (["-X", "dev"], "run -X: No such option; expected a file, -m MODULE"),
        (["--strict"], "run --strict: No such option"),
    ],
)
def test_an_option_that_is_none_is_named(given: list[str], said: str) -> None:
    with pytest.raises(CannotRun) as caught:
        _kind(given)
    assert str(caught.value).startswith(said)
