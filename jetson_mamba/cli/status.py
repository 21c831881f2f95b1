"""``jetson-mamba status``: whether the package is active here, and what runs."""

import dataclasses
import json

import typer
from rich.console import Console

from jetson_mamba.cli import tables
from jetson_mamba.report import status as report


def status(
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Whether the overrides are active, and which copy each target gets.

    mamba_ssm itself is not imported.
    """
    found = report.status(look_ahead=True)
    if as_json:
        print(json.dumps(dataclasses.asdict(found), indent=2))
        return
    console = Console(highlight=False)
    activation = f"active, by {found.activated_by}" if found.active else "not active"
    mode = f"JETSON_MAMBA={found.mode}"
    if found.backend_variable:
        mode += f", JETSON_MAMBA_BACKEND={found.backend_variable}"
    console.print(
        f"jetson-mamba {found.version}: {activation} ({mode})", markup=False, soft_wrap=True
    )
    for file in found.startup_files:
        kind = "as packaged" if file.packaged else "[red]not the packaged one[/]"
        console.print(f"startup file: {file.path}, {kind}", soft_wrap=True)
    console.print(tables.targets(found.targets))
    for target in found.targets:
        if target.path:
            console.print(f"{target.name}: {target.path}", soft_wrap=True, style="dim")
        for way in target.left_out:
            told = f"{target.name}: without {way.what}: {way.reason}"
            console.print(told, soft_wrap=True, markup=False)
    if found.backends or found.selections:
        console.print(tables.backends(found.backends, found.selections))
