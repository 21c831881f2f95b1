"""What ``bench`` has measured, as a picture: a point for each backend, a line for the floor."""

from __future__ import annotations

from itertools import cycle
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jetson_mamba.report.documents import TimedRow as Row
from jetson_mamba.report.documents import Timings as Result

# Of Okabe and Ito, told apart by every kind of colour vision, and of shapes that differ too.
STYLES = (("#0072B2", "o"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#56B4E9", "v"))
ROW_INCHES, FRAME_INCHES, WIDTH_INCHES = 0.3, 1.5, 11.0
# Of a row's height, between the points of two backends.
APART = 0.18


def draw(result: Result, path: Path) -> None:
    """Write the picture to ``path``: a panel for each op and direction, time on a log scale."""
    names = list(dict.fromkeys(each.name for each in result.backends))
    timed = [name for name in names if any(name in row.microseconds for row in result.rows)]
    styles = dict(zip(names, cycle(STYLES)))
    ops = list(dict.fromkeys(row.op for row in result.rows))
    heights = [sum(row.op == op for row in result.rows) / 2 for op in ops]
    figure = Figure(
        figsize=(WIDTH_INCHES, ROW_INCHES * sum(heights) + FRAME_INCHES * len(ops)),
        layout="constrained",
    )
    panels = figure.subplots(len(ops), 2, squeeze=False, sharey="row", height_ratios=heights)
    for op, pair in zip(ops, panels):
        for direction, axes in zip(("forward", "backward"), pair):
            rows = [row for row in result.rows if (row.op, row.direction) == (op, direction)]
            _panel(axes, rows, {name: styles[name] for name in timed})
            axes.set_title(f"{op}, {direction}", fontsize=11)
    for left, _ in panels:
        left.set_ylabel("batch, dim, seqlen; dtype; layout", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("microseconds")
    floor = Line2D([], [], color="black", marker="|", markersize=12, linestyle="none")
    points = [
        Line2D([], [], color=colour, marker=marker, linestyle="none")
        for colour, marker in (styles[name] for name in timed)
    ]
    figure.legend(
        [floor, *points],
        ["floor: fewest bytes over the rate of a copy", *timed],
        loc="outside lower center",
        ncols=1 + len(timed),
        frameon=False,
    )
    driver = f", driver {result.driver}" if result.driver else ""
    figure.suptitle(
        f"{result.name}{driver}, torch {result.torch}, jetson-mamba {result.jetson_mamba}; "
        f"a copy runs at {result.copy_rate / 1e3:.0f} GB/s",
        fontsize=10,
    )
    figure.savefig(path, dpi=150)


def _panel(axes: Axes, rows: list[Row], styles: dict[str, tuple[str, str]]) -> None:
    for place, row in enumerate(rows):
        times = [row.floor_microseconds, *row.microseconds.values()]
        axes.plot([min(times), max(times)], [place, place], color="#cccccc", linewidth=1, zorder=1)
        axes.plot(row.floor_microseconds, place, "|", color="black", markersize=12, zorder=2)
        for index, (name, (colour, marker)) in enumerate(styles.items()):
            if name in row.microseconds:
                # Above each other, so that times that are close hide none.
                apart = APART * (index - (len(styles) - 1) / 2)
                axes.plot(
                    row.microseconds[name],
                    place + apart,
                    marker,
                    color=colour,
                    markeredgecolor="white",
                    markersize=6,
                    zorder=3,
                )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_yticks(
        range(len(rows)),
        [f"{row.batch}, {row.dim}, {row.seqlen}; {row.dtype}; {row.layout}" for row in rows],
        fontsize=8,
    )
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", which="both", alpha=0.2)
    axes.spines[["top", "right"]].set_visible(False)
