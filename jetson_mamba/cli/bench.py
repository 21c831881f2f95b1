"""``jetson-mamba bench``: how fast each backend is on this machine, beside the floor."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from jetson_mamba import advice
from jetson_mamba.cli import tables
from jetson_mamba.cli.device import device as torch_device
from jetson_mamba.demo.models import require
from jetson_mamba.errors import CannotRun


def bench(
    op: Optional[str] = typer.Option(
        None, help="causal_conv1d or selective_scan. Default: both.", show_default=False
    ),
    dtype: Optional[str] = typer.Option(
        None, help="bf16 or fp32. Default: both.", show_default=False
    ),
    device: Optional[str] = typer.Option(
        None, help="cpu or cuda. Default: cuda where torch sees a GPU.", show_default=False
    ),
    rep: int = typer.Option(200, min=1, help="Milliseconds spent on each time."),
    plot: Optional[Path] = typer.Option(
        None, metavar="FILE.png", help="Draw the times, too.", show_default=False
    ),
    as_json: bool = typer.Option(False, "--json", help="Print it as JSON."),
) -> None:
    """Time the convolution and the selective scan by every backend that works here.

    Times are medians in microseconds, from a cold cache. The floor is the fewest bytes that a
    call moves, over the rate of a copy that is measured in the same run. The exit code is 1 if a
    backend fails, other than for want of memory.
    """
    if plot:
        _check_picture(plot)
    stderr = Console(stderr=True, highlight=False)
    with stderr.status("importing torch"):
        chosen = torch_device(device)
        if plot:
            require("matplotlib", f"{advice.pip()} install matplotlib")
        from jetson_mamba.report import bench as report
    ops = _chosen("--op", op, tuple(report.LAYOUTS))
    dtypes = _chosen("--dtype", dtype, tuple(report.DTYPES))
    if chosen.type == "cpu" and device is None:
        stderr.print("torch sees no GPU: this is the CPU, at sizes of its own")

    progress = Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=stderr,
        transient=True,
        disable=not stderr.is_terminal,
    )
    rows: List[Any] = []
    with progress:
        bar = progress.add_task("copy", total=None)
        run = report.Run(chosen, ops, dtypes, rep)
        progress.update(bar, total=len(run.cases))
        for case in run.cases:
            size = ", ".join(map(str, case.size))
            progress.update(bar, description=f"{case.op} {size}")
            rows += run.rows(case)
            progress.update(bar, advance=1)
    result = run.result(rows)
    if as_json:
        print(json.dumps(dataclasses.asdict(result), indent=2))
    else:
        _show(Console(highlight=False), result)
    if plot:
        from jetson_mamba.report.bench_plot import draw

        draw(result, plot)
        stderr.print(f"plot: {plot}", soft_wrap=True)
    if any(text != "out of memory" for row in rows for text in row.failures.values()):
        raise typer.Exit(1)


def _check_picture(path: Path) -> None:
    """Before minutes of measuring: whether the picture can be written."""
    if path.suffix != ".png":
        raise CannotRun(f"--plot {path}: expected a file whose name ends in .png")
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        raise CannotRun(f"--plot {path}: expected a file in a folder that can be written")


def _chosen(option: str, value: Optional[str], known: Sequence[str]) -> Sequence[str]:
    if value is None:
        return known
    if value not in known:
        raise CannotRun(f"{option} {value}: expected {' or '.join(known)}")
    return (value,)


def _show(console: Console, result: Any) -> None:
    for (op, direction), rows in _tables(result.rows).items():
        names = [
            each.name
            for each in result.backends
            if each.op == op and any(each.name in row.microseconds for row in rows)
        ]
        shown = tables.table("B, D, L", "dtype", "floor", *names, "of floor")
        shown.title = f"{op}, {direction}, microseconds"
        shown.title_justify = "left"
        shown.collapse_padding = True  # for 80 columns with four backends
        for column in shown.columns:
            column.no_wrap = True
        for column in shown.columns[2:]:
            column.justify = "right"
        for row in rows:
            shown.add_row(
                f"{row.batch}, {row.dim}, {row.seqlen}",
                f"{row.dtype} {row.layout}",
                _number(row.floor_microseconds),
                *(_number(row.microseconds.get(name)) for name in names),
                "" if row.of_floor is None else f"{row.of_floor:.1%}",
            )
        console.print(shown)
    for row in result.rows:
        for name, text in row.failures.items():
            where = f"{row.op}, {row.direction}, {row.batch}, {row.dim}, {row.seqlen}, {row.dtype}"
            console.print(f"[red]{name}[/] ({where}): {escape(text)}", soft_wrap=True)
    driver = f", driver {result.driver}" if result.driver else ""
    cuda = f" for CUDA {result.cuda}" if result.cuda else ""
    console.print(
        f"[bold]{escape(result.name)}[/]{driver}, torch {result.torch}{cuda}; a copy runs at "
        f"{result.copy_rate / 1e3:.1f} GB/s",
        soft_wrap=True,
    )
    for each in result.backends:
        reasons = "; ".join(f"{dtype}: {reason}" for dtype, reason in each.unavailable.items())
        if len(set(each.unavailable.values())) == 1:
            reasons = next(iter(each.unavailable.values()))
        console.print(
            f"{each.op}, {each.name}: {escape(reasons or each.release)}",
            soft_wrap=True,
            style="dim" if reasons else "",
        )


def _tables(rows: Sequence[Any]) -> Dict[Tuple[str, str], List[Any]]:
    """The rows of each op and direction, which make a table."""
    found: Dict[Tuple[str, str], List[Any]] = {}
    for row in rows:
        found.setdefault((row.op, row.direction), []).append(row)
    return found


def _number(microseconds: Optional[float]) -> str:
    if microseconds is None:
        return ""
    return f"{microseconds:.1f}" if microseconds < 1000 else f"{microseconds:.0f}"
