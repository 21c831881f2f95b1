"""The tables that several commands show, made to fit 80 columns."""

from typing import Sequence

from rich import box
from rich.table import Table

from jetson_mamba.report.status import Backend, Selected, Target


def table(*columns: str) -> Table:
    """An empty table in the style of all of them."""
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def targets(rows: Sequence[Target]) -> Table:
    """What became of each target, and where its copy came from."""
    shown = table("target in mamba_ssm", "state", "copy", "edits")
    shown.columns[0].no_wrap = True
    shown.columns[3].justify = "right"
    for row in rows:
        shown.add_row(
            row.name.partition(".")[2],
            row.state,
            row.copy or row.reason,
            str(row.edits) if row.copy else "",
        )
    return shown


def backends(rows: Sequence[Backend], selections: Sequence[Selected] = ()) -> Table:
    """Which backend serves each op on each device, and why: those before it do not, or a name.

    An op whose backend is named and that no call has reached has a row without a device.
    """
    shown = table("op", "device", "backend", "passed over")
    named = {each.op: each for each in selections}
    seen = dict.fromkeys(
        (
            row.op,
            row.case["device"],
            row.backend,
            f"named by {named[row.op].asked_by}"
            if row.op in named
            else "\n".join(f"{each.backend}: {each.reason}" for each in row.passed_over),
        )
        for row in rows
    )
    for cells in seen:
        shown.add_row(*cells)
    met = {row.op for row in rows}
    for each in selections:
        if each.op not in met:
            shown.add_row(each.op, "", each.backend, f"named by {each.asked_by}")
    return shown
