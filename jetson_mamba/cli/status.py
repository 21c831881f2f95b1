"""``jetson-mamba status`` says whether programs that start here are patched."""

import dataclasses

import typer

from jetson_mamba import advice
from jetson_mamba.cli import output, tables
from jetson_mamba.report import status as report
from jetson_mamba.startup import files


def status(
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Whether programs that start here are patched, and which copy each target gets.

    mamba_ssm itself is not imported.
    """
    found = report.status(look_ahead=True)
    # This process has imported the package itself; programs have not.
    activated_by = files.activates() if found.active else None
    found = dataclasses.replace(found, active=bool(activated_by), activated_by=activated_by)
    if as_json:
        output.document("status", dataclasses.asdict(found))
        return
    console = output.console()
    mode = f"JETSON_MAMBA={found.mode}"
    if found.backend_variable:
        mode += f", JETSON_MAMBA_BACKEND={found.backend_variable}"
    activation = f"active, by {found.activated_by}" if found.active else "not active"
    heading = f"jetson-mamba {found.version}: {activation} ({mode})"
    if console.width < output.NARROW:
        output.say(console, heading)
    else:
        console.print(heading, markup=False, soft_wrap=True)
    if found.active:
        output.say(console, "Programs that start here are patched.")
    else:
        enable = advice.reachable("jetson-mamba enable")
        change = "unset JETSON_MAMBA" if found.mode == "off" else enable
        only = "" if found.mode == "off" else ", except those that import jetson_mamba"
        output.say(
            console,
            f"Programs that start here are not patched{only}. To change that: {change}",
            style="yellow",
        )
    for file in found.startup_files:
        kind = "as packaged" if file.packaged else "[red]not the packaged one[/]"
        console.print(f"startup file: {file.path}, {kind}", soft_wrap=True)
    tables.targets(found.targets).show(console)
    for target in found.targets:
        if target.path:
            console.print(f"{target.name}: {target.path}", soft_wrap=True, style="dim")
        for way in target.left_out:
            output.say(console, f"{target.name}: without {way.what}: {way.reason}", indent=2)
    if found.backends or found.selections:
        tables.backends(found.backends, found.selections).show(console)
