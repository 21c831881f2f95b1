"""Prints what commands say: JSON for programs, prose of a terminal's width for people."""

from __future__ import annotations

import json
import textwrap
from typing import Any, Iterable, Mapping

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from jetson_mamba.report.envelope import envelope

# Below it a record is a paragraph, which reads better than columns of a word each.
NARROW = 76


def console(**options: Any) -> Console:
    """What prints for people; numbers and paths in it are as plain as the words around them."""
    return Console(highlight=False, **options)


def document(command: str, found: Mapping[str, Any]) -> None:
    """Print what a command has found as JSON, in the envelope that all have."""
    print(json.dumps(envelope(command, found), indent=2))


def error_document(command: str, message: str) -> None:
    """Print why a command cannot run, in the same envelope."""
    document(command, {"error": message})


def lines(text: str, width: int, indent: int = 0) -> list[str]:
    """A paragraph of lines that are no longer than a width, but for a word that is.

    Paths and commands are words: what is copied from a terminal is whole. The lines after the
    first are indented.
    """
    return textwrap.wrap(
        text,
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [""]


def say(console: Console, text: str, indent: int = 0, style: str = "") -> None:
    """Print a paragraph. A ``|`` in the style stands between its first word's and the rest's."""
    first, bar, rest = style.partition("|")
    shown = Text("\n".join(lines(text, console.width, indent)), rest if bar else first)
    if bar:
        shown.stylize(first, 0, len(text.partition(" ")[0]))
    whole(console, shown)


def whole(console: Console, shown: Text) -> None:
    """Print lines as they are, however wide the terminal is."""
    console.print(shown, no_wrap=True, overflow="ignore", crop=False)


def described(console: Console, pairs: Iterable[tuple[str, str]]) -> None:
    """Print names with what is to be said of each: in two columns, else a paragraph each."""
    pairs = list(pairs)
    column = max((len(name) for name, _ in pairs), default=0) + 2
    before = ""
    for name, text in pairs:
        shown = name if name != before or console.width < NARROW else ""
        if console.width < NARROW:
            label, indent = f"{name}: ", 2
            wrapped = lines(label + text, console.width, indent)
        else:
            label, indent = shown.ljust(column), column
            wrapped = lines("." * column + text, console.width, indent)
            wrapped[0] = label + wrapped[0][column:]
        styled = Text("\n".join(wrapped))
        styled.stylize("bold", 0, len(label.rstrip(": ")))
        whole(console, styled)
        before = name


def progress(console: Console, *, lasting: bool = False, loss: bool = False) -> Progress:
    """A bar on a terminal, and nothing elsewhere; ``lasting`` leaves it there when it is full."""
    columns = [TextColumn("{task.description:<32}"), BarColumn(), MofNCompleteColumn()]
    if loss:
        columns[0] = TextColumn("{task.description:<7}")
        columns.append(TextColumn("loss {task.fields[loss]}"))
    return Progress(
        *columns,
        TimeElapsedColumn(),
        console=console,
        transient=not lasting,
        disable=not console.is_terminal,
    )
