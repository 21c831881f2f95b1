"""``jetson-mamba verify``: the targets against float64, as they run on this machine."""

import dataclasses
from typing import Any, List, Optional

import typer
from rich.console import Console
from rich.text import Text

import jetson_mamba
from jetson_mamba.cli import output, tables
from jetson_mamba.cli.device import DEVICE
from jetson_mamba.cli.device import device as torch_device
from jetson_mamba.demo.models import mamba_ssm
from jetson_mamba.report.documents import Verification

RIGHT = ("forward", "backward", "allowed")


def verify(
    device: Optional[str] = DEVICE,
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Compare what runs here with float64, forward and backward, for several sizes and dtypes.

    The exit code is 1 if a row fails. One that torch has no operation for counts as none.
    """
    console = output.console(stderr=as_json)
    with console.status("importing torch and mamba_ssm"):
        chosen = torch_device(device)
        package = mamba_ssm()
    import torch

    from jetson_mamba.report import verify as report

    functions = report.functions()
    rows: List[Any] = []
    with output.progress(console) as progress:
        bar = progress.add_task("", total=report.row_count(functions))
        for row in report.rows(chosen, functions):
            rows.append(row)
            progress.update(bar, advance=1, description=row.function)
    counted = [row for row in rows if not row.unsupported]
    status = jetson_mamba.status()
    found = Verification(
        device=str(chosen),
        torch=str(torch.__version__),
        mamba_ssm=str(package.__version__),
        passed=all(row.passed for row in counted) and bool(counted),
        rows=tuple(rows),
        targets=status.targets,
        selections=status.selections,
        backends=status.backends,
    )
    if as_json:
        output.document("verify", dataclasses.asdict(found))
    else:
        _show(console, found)
    if not found.passed:
        raise typer.Exit(1)


def _show(console: Console, found: Verification) -> None:
    for function in dict.fromkeys(row.function for row in found.rows):
        shown = tables.Records(
            *("batch, dim, seqlen", "dtype", "forward", "backward", "worst in", "allowed"),
            "result",
            title=f"{function}, relative errors",
            right=RIGHT,
        )
        rows = [row for row in found.rows if row.function == function]
        for row in rows:
            shown.add(
                row.size.replace("batch ", "").replace("dim ", "").replace("seqlen ", ""),
                row.dtype,
                _number(row.forward),
                _number(row.backward),
                row.worst or "",
                f"{row.tolerance:.0e}",
                _result(row),
            )
        shown.show(console)
        for failure in dict.fromkeys(row.failure for row in rows if not row.unsupported):
            if failure:
                output.say(console, failure, style="red")
    tables.targets(found.targets).show(console)
    tables.backends(found.backends, found.selections).show(console)
    counted = [row for row in found.rows if not row.unsupported]
    failed = sum(not row.passed for row in counted)
    on = f"on {found.device}, mamba-ssm {found.mamba_ssm}, torch {found.torch}"
    output.say(
        console,
        f"All {len(counted)} rows pass {on}."
        if found.passed
        else f"{failed} of {len(counted)} rows fail.",
        style="green" if found.passed else "red",
    )
    if len(counted) < len(found.rows):
        output.say(
            console,
            f"{len(found.rows) - len(counted)} more are not supported: this torch has no such "
            f"operations on {found.device}.",
        )


def _result(row: Any) -> Text:
    if row.unsupported:
        return Text("not supported")
    return Text("pass", "green") if row.passed else Text("fail", "bold red")


def _number(error: Optional[float]) -> str:
    return "none" if error is None else f"{error:.1e}"
