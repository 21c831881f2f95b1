"""Runs the whole matrix: ``python -m tests.matrix [FOLDER [PROCESSES]]``, by default ``docs``."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from tests.matrix.cell import Cell, Outcome
from tests.matrix.cells import (
    after_cells,
    bare_cells,
    before_cells,
    failing_cells,
    without_cells,
)
from tests.matrix.picture import draw_again
from tests.matrix.workers import run_all, workers
from tests.without_triton.environment import Bare


def main() -> int:
    """Run it, write the two files, and say how many cells work; 1 unless all do that should."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs")
    processes = int(sys.argv[2]) if len(sys.argv) > 2 else os.cpu_count() or 1
    groups = {
        "before": before_cells(),
        "after": after_cells(),
        "without": without_cells(),
        "failing": failing_cells(),
        "without triton": bare_cells(),
    }
    cells = [cell for group in groups.values() for cell in group]
    outcomes: dict[Cell, Outcome] = {}
    start = time.monotonic()

    def done(cell: Cell, outcome: Outcome) -> None:
        outcomes[cell] = outcome
        if len(outcomes) % 25 == 0 or len(outcomes) == len(cells):
            print(
                f"{len(outcomes)} of {len(cells)} cells, {time.monotonic() - start:.0f} s",
                flush=True,
            )
        if cell.hook and not outcome.works:
            print(f"{cell}: {outcome}", flush=True)

    with tempfile.TemporaryDirectory() as kept:
        for triton in (True, False):
            bare = None if triton else Bare(Path(kept) / "bare")
            with workers(Path(kept) / "cache", processes, bare) as started:
                run_all([cell for cell in cells if cell.triton is triton], started, done)
    counts = {
        name: (sum(outcomes[cell].works for cell in group), len(group))
        for name, group in groups.items()
    }
    # A failing extension is said once for each op.
    quiet = [cell for cell in groups["failing"] if len(outcomes[cell].warnings) != 2]
    today = datetime.date.today().isoformat()
    folder.mkdir(exist_ok=True)
    (folder / "matrix.json").write_text(
        json.dumps(
            {
                "date": today,
                "command": "make matrix",
                "environment": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("torch", "triton", "transformers")},
                    "processes": processes,
                },
                "counts": {
                    name: {"works": works, "of": of} for name, (works, of) in counts.items()
                },
                "cells": [
                    {**cell._asdict(), **outcomes[cell]._asdict()}
                    for cell in sorted(cells, key=str)
                ],
            },
            indent=1,
        )
        + "\n"
    )
    try:
        draw_again(folder)
    except ImportError as error:
        print(f"no picture ({error}): python -m tests.matrix.picture {folder} draws it")
    for name, (works, of) in counts.items():
        print(f"{name}: {works} of {of}")
    for cell in quiet:
        print(f"{cell}: expected one warning for each op, found {outcomes[cell].warnings}")
    expected = all(works == of for name, (works, of) in counts.items() if name != "before")
    return 0 if expected and not quiet else 1


if __name__ == "__main__":
    sys.exit(main())
