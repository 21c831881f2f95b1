"""Runs cells in processes that are forked from one that has everything heavy imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Sequence

from tests import forks
from tests.matrix.cell import Cell, Outcome, run
from tests.without_triton.environment import Bare


def run_all(
    cells: Sequence[Cell],
    cache: Path,
    done: Callable[[Cell, Outcome], None],
    processes: int = 2,
    bare: Bare | None = None,
) -> None:
    """Run every cell and hand over each outcome as it comes; where ``bare`` is, without Triton."""

    def one(place: int, answer: Any) -> None:
        works, error, raised, said = answer
        done(cells[place], Outcome(works, error, raised, tuple(said)))

    seen = ((), {}) if bare is None else (bare.OPTIONS, bare.environment())
    forks.run_all(__name__, cells, cache, one, processes, *seen)


if __name__ == "__main__":
    forks.serve(
        lambda request: run(Cell(*request)),
        lambda status: Outcome(False, None, f"the process ended with status {status}", ()),
    )
