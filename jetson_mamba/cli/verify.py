"""``jetson-mamba verify``: the targets against float64, as they run on this machine."""

import dataclasses
import json
from typing import Any, List, Optional

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import jetson_mamba
from jetson_mamba.cli import tables
from jetson_mamba.cli.device import device as torch_device
from jetson_mamba.demo.models import mamba_ssm


def verify(
    device: Optional[str] = typer.Option(
        None, help="cpu or cuda. Default: cuda where torch sees a GPU.", show_default=False
    ),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Compare what runs here with float64, forward and backward, for several sizes and dtypes.

    The exit code is 1 if a row fails. One that torch has no operation for counts as none.
    """
    console = Console(highlight=False, stderr=as_json)
    with console.status("importing torch and mamba_ssm"):
        chosen = torch_device(device)
        package = mamba_ssm()
    import torch

    from jetson_mamba.report import verify as report

    functions = report.functions()
    rows: List[Any] = []
    progress = Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    with progress:
        bar = progress.add_task("", total=report.row_count(functions))
        for row in report.rows(chosen, functions):
            rows.append(row)
            progress.update(bar, advance=1, description=row.function)
    counted = [row for row in rows if not row.unsupported]
    passed = all(row.passed for row in counted) and bool(counted)
    status = jetson_mamba.status()
    if as_json:
        found = {
            "device": str(chosen),
            "torch": str(torch.__version__),
            "mamba_ssm": str(package.__version__),
            "passed": passed,
            "rows": [dataclasses.asdict(row) for row in rows],
            "targets": [dataclasses.asdict(target) for target in status.targets],
            "selections": [dataclasses.asdict(selected) for selected in status.selections],
            "backends": [dataclasses.asdict(backend) for backend in status.backends],
        }
        print(json.dumps(found, indent=2))
    else:
        _show(console, rows)
        console.print(tables.targets(status.targets))
        console.print(tables.backends(status.backends, status.selections))
        failed = sum(not row.passed for row in counted)
        console.print(
            f"[red]{failed} of {len(counted)} rows fail.[/]"
            if not passed
            else f"[green]All {len(counted)} rows pass[/] on {chosen}, mamba-ssm "
            f"{package.__version__}, torch {torch.__version__}."
        )
        if len(counted) < len(rows):
            console.print(
                f"{len(rows) - len(counted)} more are not supported: this torch has no such "
                f"operations on {chosen}."
            )
    if not passed:
        raise typer.Exit(1)


def _show(console: Console, rows: List[Any]) -> None:
    for function in dict.fromkeys(row.function for row in rows):
        shown = tables.table("size", "dtype", "forward", "backward", "worst in", "allowed", "")
        shown.title = function
        shown.title_justify = "left"
        for row in rows:
            if row.function == function:
                shown.add_row(
                    row.size.replace("batch ", "").replace("dim ", "").replace("seqlen ", ""),
                    row.dtype,
                    _number(row.forward),
                    _number(row.backward),
                    row.worst or "",
                    f"{row.tolerance:.0e}",
                    _verdict(row),
                )
        console.print(shown)
        failures = (row.failure for row in rows if row.function == function and not row.unsupported)
        for failure in dict.fromkeys(failures):
            if failure:
                console.print(f"[red]{escape(failure)}[/]", soft_wrap=True)


def _verdict(row: Any) -> str:
    if row.unsupported:
        return "not supported"
    return "[green]pass[/]" if row.passed else "[bold red]fail[/]"


def _number(error: Optional[float]) -> str:
    return "none" if error is None else f"{error:.1e}"
