"""``jetson-mamba install``: mamba-ssm without compiling, beside the torch that is there."""

import json
import sys

import typer
from rich.console import Console
from rich.markup import escape

from jetson_mamba import installer
from jetson_mamba.errors import CannotRun


def install(
    requirement: str = typer.Argument(
        "mamba-ssm", metavar="[REQUIREMENT]", help="Which version, such as mamba-ssm==2.2.4."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only show what would be done."),
    as_json: bool = typer.Option(
        False, "--json", help="Print it as JSON; with --yes or --dry-run."
    ),
) -> None:
    """Install mamba-ssm into this environment, compiling nothing, leaving torch as it is.

    The exit code is 1 if pip fails, or if mamba_ssm cannot be imported afterwards.
    """
    if as_json and not (yes or dry_run):
        raise CannotRun("--json: nothing is asked then; expected --yes or --dry-run beside it")
    console = Console(highlight=False, soft_wrap=True, stderr=as_json)
    with console.status("asking pip what it would do"):
        plan = installer.plan(requirement)
    console.print(f"torch {plan.torch} stays as it is.")
    if plan.packages:
        console.print(f"Comes along: {', '.join(plan.packages)}")
    for step in plan.steps:
        console.print(f"  [bold]{escape(str(step))}[/]")
    version, failure = None, None
    if not dry_run:
        if not yes:
            typer.confirm("Run this?", abort=True)
        for step in plan.steps:
            if not installer.carry_out(step, sys.stderr if as_json else sys.stdout):
                failure = f"pip failed: {step}"
                break
        else:
            works, told = installer.imported()
            version, failure = (told, None) if works else (None, told)
    if as_json:
        found = {
            "requirement": plan.requirement,
            "torch": plan.torch,
            "packages": list(plan.packages),
            "commands": [str(step) for step in plan.steps],
            "installed": version,
            "failure": failure,
        }
        print(json.dumps(found, indent=2))
    elif version:
        console.print(f"[green]mamba_ssm {escape(version)} can be imported.[/]")
    elif failure:
        console.print(f"[red]{escape(failure)}[/]")
    if failure:
        raise typer.Exit(1)
