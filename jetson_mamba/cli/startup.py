"""``jetson-mamba enable`` writes the startup file; ``disable`` removes it."""

import dataclasses
from typing import List

import typer

from jetson_mamba.cli import output
from jetson_mamba.report.documents import Disabled, Enabled
from jetson_mamba.startup import files


def enable(as_json: bool = typer.Option(False, "--json", help="Print it as JSON.")) -> None:
    """Put the startup files back, so that every Python of this environment is served.

    The exit code is 1 if an interpreter that starts here is not served all the same.
    """
    changed = files.enable()
    effective = files.takes_effect()
    if as_json:
        done = Enabled(tuple(changed), tuple(files.installed()), effective)
        output.document("enable", dataclasses.asdict(done))
    else:
        _show("written", changed, effective)
    if not effective:
        raise typer.Exit(1)


def disable(as_json: bool = typer.Option(False, "--json", help="Print it as JSON.")) -> None:
    """Remove the startup files, so that only programs that import jetson_mamba are served.

    The exit code is 1 if an interpreter that starts here is served all the same.
    """
    removed = files.disable()
    effective = files.takes_effect()
    if as_json:
        done = Disabled(tuple(removed), tuple(files.installed()), effective)
        output.document("disable", dataclasses.asdict(done))
    else:
        _show("removed", removed, effective)
    if effective:
        raise typer.Exit(1)


def _show(word: str, changed: List[str], effective: bool) -> None:
    there = files.installed()
    console = output.console(soft_wrap=True)
    for path in changed:
        console.print(f"{word}: {path}")
    if not changed:
        console.print("nothing to change: " + (", ".join(file.path for file in there) or "none"))
    console.print(
        "An interpreter that starts here is served."
        if effective
        else "An interpreter that starts here is not served."
    )
