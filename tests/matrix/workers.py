"""Runs cells in processes that are forked from one that has everything heavy imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Sequence

from tests import forks
from tests.matrix.cell import Cell, Outcome, run


def workers(cache: Path, processes: int = 2) -> forks.Workers:
    """The processes, which keep copies in ``cache``."""
    return forks.Workers(__name__, cache, processes)


def run_all(
    cells: Sequence[Cell], started: forks.Workers, done: Callable[[Cell, Outcome], None]
) -> None:
    """Run every cell and hand over each outcome as it comes."""

    def one(place: int, answer: Any) -> None:
        works, error, raised, said = answer
        done(cells[place], Outcome(works, error, raised, tuple(said)))

    started.run(cells, one)


if __name__ == "__main__":
    forks.serve(
        lambda request: run(Cell(*request)),
        lambda status: Outcome(False, None, f"the process ended with status {status}", ()),
    )
