"""``jetson-mamba install``: mamba-ssm without compiling, beside the torch that is there."""

import dataclasses
import sys
from typing import List, Optional, Tuple

import typer
from rich.console import Console
from rich.markup import escape

from jetson_mamba import advice
from jetson_mamba.cli import output, tables
from jetson_mamba.errors import CannotRun
from jetson_mamba.installing import plan as plans
from jetson_mamba.installing import work as works
from jetson_mamba.installing.situation import situation


def install(
    requirement: str = typer.Argument(
        "mamba-ssm", metavar="[REQUIREMENT]", help="Which version, such as mamba-ssm==2.2.4."
    ),
    yes: bool = typer.Option(False, "--yes", "-y", help="Do not ask."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Only show what would be done."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Show what pip says as well."),
    as_json: bool = typer.Option(
        False, "--json", help="Print it as JSON; with --yes or --dry-run."
    ),
) -> None:
    """Install mamba-ssm into this environment, compiling nothing, leaving torch as it is.

    What goes together with the Python, torch and Triton that are there is chosen, and afterwards
    a block of each kind is run. The exit code is 1 if something of that fails.
    """
    if as_json and not (yes or dry_run):
        raise CannotRun("--json: nothing is asked then; expected --yes or --dry-run beside it")
    console = output.console(soft_wrap=True, stderr=as_json)
    with console.status("looking at what is here"):
        here = situation()
        plan = plans.plan(here, requirement)
    with console.status("asking what would come along"):
        work = works.work(plan, here.tool)
    _show(console, plan, work)
    version, failure = None, None
    if not dry_run:
        if work.steps and not yes:
            _ask()
        version, failure = _do(console, work, verbose)
    if as_json:
        found = plans.Outcome(
            requirement=plan.requirement,
            torch=plan.torch.version,
            choices=plan.choices,
            notes=plan.notes,
            packages=work.packages,
            commands=tuple(map(str, work.steps)),
            installed=version,
            failure=failure,
        )
        output.document("install", dataclasses.asdict(found))
    elif version:
        console.print(f"[green]mamba_ssm {escape(version)} runs a block of each kind.[/]")
    elif failure:
        console.print(f"[red]{escape(failure)}[/]")
    if failure:
        raise typer.Exit(1)


def _ask() -> None:
    """Go on where the answer is yes."""
    try:
        agreed = typer.confirm("Run this?")
    except typer.Abort as aborted:
        if isinstance(aborted.__context__, EOFError):
            raise CannotRun("no answer; pass --yes") from None
        raise KeyboardInterrupt from None
    if not agreed:
        print("jetson-mamba: nothing is installed", file=sys.stderr)
        raise typer.Exit(1)


def _show(console: Console, plan: plans.Plan, work: works.Work) -> None:
    table = tables.Records("package", "is here", "will be", "why", wraps=("will be", "why"))
    for choice in plan.choices:
        row: Tuple[str, ...] = (
            choice.package,
            choice.found or "no",
            choice.then or (choice.found or "not installed"),
            choice.why,
        )
        table.add(*row)
    table.show(console)
    for note in plan.notes:
        console.print(f"[yellow]{escape(note)}[/]")
    if work.packages:
        console.print(f"Comes along: {escape(', '.join(work.packages))}")
    for step in work.steps:
        console.print(f"  [bold]{escape(str(step))}[/]")
    if not work.steps:
        console.print("Nothing has to be installed.")


def _do(console: Console, work: works.Work, verbose: bool) -> Tuple[Optional[str], Optional[str]]:
    """The version that runs afterwards, or what failed."""
    names: List[str] = [" ".join(step.command[-1:]) for step in work.steps]
    for step, name in zip(work.steps, names):
        if verbose:
            reason = works.carry_out(step, sys.stderr.fileno())
        else:
            with console.status(f"installing {name}"):
                reason = works.carry_out(step)
        if reason is not None:
            more = "" if verbose else " (--verbose shows all that was said)"
            return None, f"this failed: {step}: {reason}{more}"
    with console.status("running a block of each kind"):
        version, failure = works.try_it(work.plan)
    if failure:
        more = advice.reachable("`jetson-mamba doctor` says more")
        failure = f"mamba_ssm does not work: {failure}; {more}"
    return version, failure
