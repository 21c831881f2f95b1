"""``jetson-mamba enable`` and ``disable``: the startup files in ``site-packages``."""

import dataclasses
import json
from typing import List

import typer
from rich.console import Console

from jetson_mamba.startup import files


def enable(as_json: bool = typer.Option(False, "--json", help="Print it as JSON.")) -> None:
    """Put the startup files back, so that every Python of this environment is served.

    The exit code is 1 if an interpreter that starts here is not served all the same.
    """
    changed = files.enable()
    effective = files.takes_effect()
    _show("written", changed, effective, as_json)
    if not effective:
        raise typer.Exit(1)


def disable(as_json: bool = typer.Option(False, "--json", help="Print it as JSON.")) -> None:
    """Remove the startup files, so that only programs that import jetson_mamba are served.

    The exit code is 1 if an interpreter that starts here is served all the same.
    """
    removed = files.disable()
    effective = files.takes_effect()
    _show("removed", removed, effective, as_json)
    if effective:
        raise typer.Exit(1)


def _show(word: str, changed: List[str], effective: bool, as_json: bool) -> None:
    there = files.installed()
    if as_json:
        found = {
            word: changed,
            "startup_files": [dataclasses.asdict(file) for file in there],
            "takes_effect": effective,
        }
        print(json.dumps(found, indent=2))
        return
    console = Console(highlight=False, soft_wrap=True)
    for path in changed:
        console.print(f"{word}: {path}")
    if not changed:
        console.print("nothing to change: " + (", ".join(file.path for file in there) or "none"))
    console.print(
        "An interpreter that starts here is served."
        if effective
        else "An interpreter that starts here is not served."
    )
