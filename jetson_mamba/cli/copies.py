"""``jetson-mamba diff`` shows the modified copies; ``copies`` lists those that are kept."""

import dataclasses
import sys
from typing import Optional

import typer
from rich.text import Text

from jetson_mamba.cli import output, tables
from jetson_mamba.finder import TARGETS
from jetson_mamba.report import changes, documents, kept_copies

STYLES = (("+++", "bold"), ("---", "bold"), ("@@", "cyan"), ("+", "green"), ("-", "red"))


def diff(
    target: Optional[str] = typer.Argument(
        None,
        help="A target, or how its name ends, such as ssd_combined. Default: all.",
        autocompletion=lambda: list(TARGETS),
    ),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Show what the modified copies change in the installed mamba_ssm, as a unified diff.

    The exit code is 1 if a target is not understood, and so is left as it is installed.
    """
    found = changes.changes(target)
    if as_json:
        output.document("diff", dataclasses.asdict(documents.Changes(found)))
    for each in () if as_json else found:
        _show(each)
    if any(each.refused for each in found):
        raise typer.Exit(1)


def _show(change: changes.Change) -> None:
    if change.reason:
        print(f"{change.target}: {change.reason}", file=sys.stderr)
    for way in change.left_out:
        print(f"{change.target}: {way.what} is left as it is: {way.reason}", file=sys.stderr)
    if not sys.stdout.isatty():
        sys.stdout.write(change.diff)
        return
    console = output.console(soft_wrap=True)
    for line in change.diff.splitlines():
        style = next((style for start, style in STYLES if line.startswith(start)), "")
        console.print(Text(line, style=style, tab_size=8))


def copies(
    clear: bool = typer.Option(False, "--clear", help="Remove the cached copies."),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """List the modified copies that are kept; those in use serve the installed mamba_ssm."""
    removed = kept_copies.clear() if clear else ()
    found = documents.Copies(
        bundled_folder=kept_copies.bundled_folder(),
        cached_folder=kept_copies.cached_folder(),
        not_writable=kept_copies.not_writable(),
        copies=kept_copies.kept(),
        removed=removed,
    )
    if as_json:
        output.document("copies", dataclasses.asdict(found))
        return
    console = output.console()
    if clear:
        console.print(f"removed: {len(removed)} files")
    shown = tables.Records("target in mamba_ssm", "copy", "size", "in use", right=("size",))
    for each in found.copies:
        shown.add(
            each.target.partition(".")[2],
            each.origin,
            f"{each.size / 1024:.0f} KiB",
            "yes" if each.in_use else "",
        )
    if found.copies:
        shown.show(console)
    else:
        console.print("No copies are kept.")
    console.print(f"cached in {found.cached_folder}", soft_wrap=True, style="dim")
    if found.not_writable:
        output.say(
            console,
            f"Nothing can be kept there ({found.not_writable}), so every process makes its copies "
            "anew; JETSON_MAMBA_CACHE can name another folder.",
            style="yellow",
        )
