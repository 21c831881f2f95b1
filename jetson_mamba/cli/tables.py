"""The tables that several commands show: columns where they fit, else a paragraph a record."""

from __future__ import annotations

from typing import Iterator, Sequence

from rich import box
from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from jetson_mamba.cli.output import NARROW, lines
from jetson_mamba.report.status import Backend, Selected, Target

# A space that no line is broken at.
GLUE = "\u00a0"


class Records:
    """Rows of named fields, in which nothing is ever cut and no word is broken.

    The cells of the columns in ``wraps`` may take several lines, those in ``right`` stand on the
    right. Where the columns need more width than there is, or that is less than ``NARROW``, each
    row is a paragraph of "label: value", without what is empty.
    """

    def __init__(
        self,
        *labels: str,
        title: str = "",
        wraps: Sequence[str] = (),
        right: Sequence[str] = (),
    ) -> None:
        self._labels = labels
        self._title = title
        self._wraps = frozenset(wraps)
        self._right = frozenset(right)
        self._rows: list[list[Text]] = []

    def add(self, *cells: str | Text) -> None:
        """Add a row: texts, of which none is markup."""
        self._rows.append([each if isinstance(each, Text) else Text(each) for each in cells])

    def show(self, console: Console) -> None:
        """Print the rows."""
        console.print(self, crop=False)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table | Text]:
        table = self._table(options.max_width) if options.max_width >= NARROW else None
        if table:
            yield table
            return
        if self._title:
            yield Text(self._title, "italic")
        for row in self._rows:
            yield self._paragraph(row, options.max_width)

    def _table(self, width: int) -> Table | None:
        """The rows in columns; None where they do not fit."""
        natural, least = [], []
        for index, label in enumerate(self._labels):
            cells = [row[index].plain for row in self._rows]
            words = max((len(word) for word in label.split()), default=0)
            whole = max((len(line) for cell in cells for line in cell.splitlines()), default=0)
            parts = max((len(word) for cell in cells for word in cell.split()), default=0)
            natural.append(max(words, whole))
            least.append(max(words, parts if label in self._wraps else whole))
        # Two spaces between columns, and the frame's one on either side.
        room = width - 2 * len(natural)
        for index in sorted(range(len(natural)), key=lambda each: least[each] - natural[each]):
            natural[index] -= min(max(0, sum(natural) - room), natural[index] - least[index])
        if sum(natural) > room:
            return None
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.title, table.title_justify = self._title or None, "left"
        for label, size in zip(self._labels, natural):
            table.add_column(label, width=size, justify="right" if label in self._right else "left")
        for row in self._rows:
            table.add_row(*row)
        return table

    def _paragraph(self, row: Sequence[Text], width: int) -> Text:
        fields = []
        for label, cell in zip(self._labels, row):
            value = ", ".join(cell.plain.splitlines())
            if not value:
                continue
            # Label and value stay together as far as a line can hold them.
            name, room = label.replace(" ", GLUE) + ":", width - 3
            if len(label) + 2 + len(value) <= room:
                fields.append(name + GLUE + value.replace(" ", GLUE))
            else:
                fits = len(label) + 2 + len(value.split()[0]) <= room
                fields.append(name + (GLUE if fits else " ") + value)
        text = "\n".join(lines("; ".join(fields), width, indent=2)).replace(GLUE, " ")
        shown = Text(text + "\n", no_wrap=True, overflow="ignore")
        for label, cell in zip(self._labels, row):
            shown.highlight_words([f"{label}: "], "dim")
            if cell.style:
                shown.highlight_words([f" {cell.plain}"], cell.style)
        return shown


def targets(rows: Sequence[Target]) -> Records:
    """What became of each target, and where its copy came from."""
    shown = Records(
        "target in mamba_ssm", "state", "copy", "edits", wraps=("copy",), right=("edits",)
    )
    for row in rows:
        shown.add(
            row.name.partition(".")[2],
            row.state,
            row.copy or row.reason or "",
            str(row.edits) if row.copy else "",
        )
    return shown


def backends(rows: Sequence[Backend], selections: Sequence[Selected] = ()) -> Records:
    """Which backend serves each op on each device, and why: those before it do not, or a name.

    An op whose backend is named and that no call has reached has a row without a device.
    """
    shown = Records("op", "device", "backend", "passed over", wraps=("passed over",))
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
        shown.add(*cells)
    met = {row.op for row in rows}
    for each in selections:
        if each.op not in met:
            shown.add(each.op, "", each.backend, f"named by {each.asked_by}")
    return shown
