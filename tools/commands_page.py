"""Writes the page of commands from the command line itself: ``python -m tools.commands_page``.

A test holds the page to what this writes, so an option, an exit code or a JSON key that is added is
on the page or fails the build.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any, Iterator

import jetson_mamba.cli
from jetson_mamba.cli.commands import program
from jetson_mamba.cli.schema import DOCUMENTS
from jetson_mamba.report import keys, schema
from jetson_mamba.report.machine import Machine

PAGE = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
HEAD = """\
# Commands

<!-- Written by python -m tools.commands_page; not to be edited. -->

`jetson-mamba COMMAND`, or `python -m jetson_mamba COMMAND` if the folder of scripts is not on the \
`PATH`. The [environment variables](environment.md) have a page of their own.

## Exit codes

"""
CODES = (
    ("0", "done"),
    ("1", "done, and the result is bad: what that means stands under each command"),
    ("2", "the command cannot run, or its output cannot be written; one line on stderr says why"),
    ("130", "interrupted by Ctrl-C"),
    ("141", "the reader of the output has gone, such as `head`"),
)
ENVELOPE = """
## JSON

With `--json` stdout holds one document. All begin with the same keys:

"""


def page() -> str:
    """The whole page, in Markdown."""
    told = inspect.cleandoc(jetson_mamba.cli.__doc__ or "")
    for code, _ in CODES:
        assert code in told, f"the command line's docstring does not speak of exit code {code}"
    lines = [HEAD, *_table(("exit code", "meaning"), CODES), ENVELOPE]
    lines += _table(("key", "meaning"), ((f"`{key}`", word) for key, word in keys.ENVELOPE.items()))
    lines.append("\n`machine` holds:\n\n")
    lines += _table(
        ("key", "kind", "meaning"), ((f"`{k}`", t, m) for k, t, m in schema.table(Machine))
    )
    group = program()
    context = group.make_context("jetson-mamba", [], resilient_parsing=True)
    for name in group.list_commands(context):
        lines += _command(name, group.get_command(context, name), context)
    return "".join(lines)


def _command(name: str, command: Any, above: Any) -> Iterator[str]:
    context = command.make_context(name, [], parent=above, resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    yield f"\n## {name}\n\n```text\njetson-mamba {name} {usage}\n```\n\n"
    paragraphs = (command.help or "").partition("\f")[0].strip().split("\n\n")
    yield "\n\n".join(" ".join(each.split()) for each in paragraphs) + "\n\n"
    rows = []
    for each in command.params:
        if getattr(each, "hidden", False) or each.name == "version":
            continue
        spelled = (
            each.opts if each.param_type_name == "option" else [each.metavar or each.name.upper()]
        )
        words = getattr(each, "help", None) or ""
        default = each.default() if callable(each.default) else each.default
        plain = isinstance(default, (int, str, float)) and not isinstance(default, bool)
        if plain and default != "" and "efault" not in words:
            words += f" Default: {default}."
        rows.append((", ".join(f"`{one}`" for one in spelled), words))
    yield from _table(("option", "meaning"), rows)
    if name in DOCUMENTS:
        yield "\n`--json`, beside the keys that all have:\n\n"
        found = schema.table(*DOCUMENTS[name])
        shown = [each for each in found if each[0].split(".")[0] not in ("machine", "version")]
        yield from _table(("key", "kind", "meaning"), ((f"`{k}`", t, m) for k, t, m in shown))


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |\n|{' --- |' * len(head)}\n"
    for row in rows:
        yield f"| {' | '.join(each.replace('|', '&#124;') for each in row)} |\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{PAGE}\n")
