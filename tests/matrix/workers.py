"""Runs cells in processes that are forked from one that has everything heavy imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Sequence

from tests import forks
from tests.matrix.cell import Cell, Outcome, run
from tests.without_triton.environment import Bare


def workers(cache: Path, processes: int = 2, bare: Bare | None = None) -> forks.Workers:
    """The processes, which keep copies in ``cache``; with ``bare`` they see no Triton."""
    if bare is None:
        return forks.Workers(__name__, cache, processes)
    return forks.Workers(__name__, cache, processes, bare.OPTIONS, bare.environment())


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
