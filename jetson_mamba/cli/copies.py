"""``jetson-mamba diff`` and ``copies``: what is changed, and where the results are kept."""

import dataclasses
import json
import sys
from typing import Optional

import typer
from rich.console import Console
from rich.text import Text

from jetson_mamba.cli import tables
from jetson_mamba.report import changes, kept_copies

STYLES = (("+++", "bold"), ("---", "bold"), ("@@", "cyan"), ("+", "green"), ("-", "red"))


def diff(
    target: Optional[str] = typer.Argument(
        None, help="A target, or how its name ends, such as ssd_combined. Default: all."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Show what the modified copies change in the installed mamba_ssm, as a unified diff.

    The exit code is 1 if a target is not understood, and so is left as it is installed.
    """
    found = changes.changes(target)
    if as_json:
        print(json.dumps([dataclasses.asdict(each) for each in found], indent=2))
    for each in () if as_json else found:
        _show(each)
    if any(each.refused for each in found):
        raise typer.Exit(1)


def _show(change: changes.Change) -> None:
    if change.reason:
        print(f"{change.target}: {change.reason}", file=sys.stderr)
    for what, reason in change.left_out:
        print(f"{change.target}: {what} is left as it is: {reason}", file=sys.stderr)
    if not sys.stdout.isatty():
        sys.stdout.write(change.diff)
        return
    console = Console(highlight=False, soft_wrap=True)
    for line in change.diff.splitlines():
        style = next((style for start, style in STYLES if line.startswith(start)), "")
        console.print(Text(line, style=style, tab_size=8))


def copies(
    clear: bool = typer.Option(False, "--clear", help="Remove the cached copies."),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """List the modified copies that are kept; those in use serve the installed mamba_ssm."""
    removed = kept_copies.clear() if clear else ()
    found = kept_copies.kept()
    if as_json:
        print(
            json.dumps(
                {
                    "bundled_folder": kept_copies.bundled_folder(),
                    "cached_folder": kept_copies.cached_folder(),
                    "copies": [dataclasses.asdict(each) for each in found],
                    "removed": list(removed),
                },
                indent=2,
            )
        )
        return
    console = Console(highlight=False)
    if clear:
        console.print(f"removed: {len(removed)} files")
    shown = tables.table("target in mamba_ssm", "copy", "size", "in use")
    shown.columns[2].justify = "right"
    for each in found:
        shown.add_row(
            each.target.partition(".")[2],
            each.origin,
            f"{each.size / 1024:.0f} KiB",
            "yes" if each.in_use else "",
        )
    console.print(shown if found else "No copies are kept.")
    console.print(f"cached in {kept_copies.cached_folder()}", soft_wrap=True, style="dim")
