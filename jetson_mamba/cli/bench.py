"""``jetson-mamba bench``: how fast each backend is on this machine, beside the floor."""

import dataclasses
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import typer
from rich.console import Console

from jetson_mamba import advice
from jetson_mamba.cli import output, tables
from jetson_mamba.cli.device import DEVICE
from jetson_mamba.cli.device import device as torch_device
from jetson_mamba.demo.models import require
from jetson_mamba.errors import CannotRun
from jetson_mamba.report.folders import unwritable


def bench(
    op: Optional[str] = typer.Option(
        None,
        help="causal_conv1d or selective_scan. Default: both.",
        show_default=False,
        autocompletion=lambda: ["causal_conv1d", "selective_scan"],
    ),
    dtype: Optional[str] = typer.Option(
        None,
        help="bfloat16 or float32. Default: both.",
        show_default=False,
        autocompletion=lambda: ["bfloat16", "float32"],
    ),
    device: Optional[str] = DEVICE,
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
    stderr = output.console(stderr=True)
    with stderr.status("importing torch"):
        chosen = torch_device(device)
        if plot:
            require("matplotlib", f"{advice.pip()} install matplotlib")
        from jetson_mamba.report import bench as report
    ops = _chosen("--op", op, tuple(report.LAYOUTS))
    dtypes = _chosen("--dtype", report.SHORT.get(dtype or "", dtype), tuple(report.DTYPES))
    if chosen.type == "cpu" and device is None:
        stderr.print("torch sees no GPU: this is the CPU, at sizes of its own")

    rows: List[Any] = []
    with output.progress(stderr) as progress:
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
        output.document("bench", dataclasses.asdict(result))
    else:
        _show(output.console(), result)
    if plot:
        from jetson_mamba.report.bench_plot import draw

        try:
            draw(result, plot)
        except OSError as error:
            raise CannotRun(
                f"--plot {plot}: {error.strerror or error}; the times above are complete"
            ) from error
        stderr.print(f"plot: {plot}", soft_wrap=True)
    if any(text != "out of memory" for row in rows for text in row.failures.values()):
        raise typer.Exit(1)


def _check_picture(path: Path) -> None:
    """Before minutes of measuring: whether the picture can be written."""
    if path.suffix != ".png":
        raise CannotRun(f"--plot {path}: expected a file whose name ends in .png")
    if path.is_dir() or (path.exists() and not os.access(path, os.W_OK)):
        raise CannotRun(f"--plot {path}: expected a file that can be written")
    if not path.parent.is_dir() or unwritable(str(path.parent)):
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
        shown = tables.Records(
            *("batch, dim, seqlen", "dtype", "layout", "floor", *names, "of floor"),
            title=f"{op}, {direction}, microseconds",
            right=("floor", *names, "of floor"),
        )
        for row in rows:
            shown.add(
                f"{row.batch}, {row.dim}, {row.seqlen}",
                row.dtype,
                row.layout,
                _number(row.floor_microseconds),
                *(_number(row.microseconds.get(name)) for name in names),
                "" if row.of_floor is None else f"{row.of_floor:.1%}",
            )
        shown.show(console)
    for row in result.rows:
        for name, text in row.failures.items():
            where = f"{row.op}, {row.direction}, {row.batch}, {row.dim}, {row.seqlen}, {row.dtype}"
            output.say(console, f"{name} ({where}): {text}", indent=2, style="red|")
    driver = f", driver {result.driver}" if result.driver else ""
    cuda = f" for CUDA {result.cuda}" if result.cuda else ""
    output.say(
        console,
        f"{result.name}{driver}, torch {result.torch}{cuda}; a copy runs at "
        f"{result.copy_rate / 1e3:.1f} GB/s",
    )
    for each in result.backends:
        reasons = "; ".join(f"{dtype}: {reason}" for dtype, reason in each.unavailable.items())
        if len(set(each.unavailable.values())) == 1:
            reasons = next(iter(each.unavailable.values()))
        output.say(
            console,
            f"{each.op}, {each.name}: {reasons or each.release}",
            indent=2,
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
