"""The matrix, reduced to each distinct text with each generation of call signatures."""

from __future__ import annotations

from pathlib import Path
from typing import Iterator

import pytest

from tests import emulated, interpreters
from tests.forks import Workers
from tests.matrix.cell import FIRST_WITH_TRITON_3, Cell, Outcome
from tests.matrix.cells import GENERATIONS, distinct_texts, reduced_cells
from tests.matrix.workers import run_all, workers
from tests.without_triton.environment import Bare


@pytest.fixture(scope="module")
def started() -> Iterator[Workers]:
    with workers(interpreters.copies(), processes=1) as started:
        yield started


def outcomes_of(cells: list[Cell], started: Workers) -> dict[Cell, Outcome]:
    found: dict[Cell, Outcome] = {}
    run_all(cells, started, found.__setitem__)
    return found


@pytest.mark.parametrize("text", distinct_texts())
def test_each_text_works_with_each_generation_and_with_none(text: str, started: Workers) -> None:
    outcomes = outcomes_of([each for each in reduced_cells() if each.mamba_ssm == text], started)
    assert {cell.causal_conv1d for cell in outcomes} == {*GENERATIONS, None}
    assert {cell: outcome for cell, outcome in outcomes.items() if not outcome.works} == {}
    assert {cell: outcome.warnings for cell, outcome in outcomes.items() if outcome.warnings} == {}


def test_each_text_and_each_generation_meet_kernels() -> None:
    cells = [each for each in reduced_cells() if each.kernels]
    later = [each for each in cells if emulated.version(each.mamba_ssm) >= FIRST_WITH_TRITON_3]
    assert {each.mamba_ssm for each in cells} == set(distinct_texts())
    assert {each.causal_conv1d for each in later} == {*GENERATIONS, None}


def test_the_same_where_there_is_no_triton(tmp_path: Path) -> None:
    # The generations differ in calls that have nothing to do with it: the oldest and the newest.
    ends = (GENERATIONS[0], GENERATIONS[-1], None)
    cells = [each for each in reduced_cells(triton=False) if each.causal_conv1d in ends]
    # Without the hook the texts that import it are not imported at all.
    alone = Cell("2.2.4", "1.5.0.post8", False, triton=False)
    with workers(interpreters.copies(), processes=1, bare=Bare(tmp_path / "bare")) as started:
        outcomes = outcomes_of([*cells, alone], started)
    assert "No module named 'triton'" in str(outcomes.pop(alone).raised)
    assert len(outcomes) == len(ends) * len(distinct_texts())
    assert {cell: outcome for cell, outcome in outcomes.items() if not outcome.works} == {}
    assert {cell: outcome.warnings for cell, outcome in outcomes.items() if outcome.warnings} == {}


def test_without_the_hook_only_matching_calls_work(started: Workers) -> None:
    """The emulated extensions are strict: this is what makes the rest of the matrix mean much."""
    matching = [Cell("1.0.1", "1.0.2", False), Cell("1.2.2", "1.5.0.post8", False)]
    matching += [Cell("2.2.4", "1.2.1", False), Cell("2.3.2.post1", "1.7.0", False)]
    others = [Cell("1.0.1", "1.1.1", False), Cell("1.2.2", "1.7.0", False)]
    outcomes = outcomes_of([*matching, *others], started)
    assert [cell for cell in matching if not outcomes[cell].works] == []
    assert all("TypeError" in str(outcomes[cell].raised) for cell in others)


def test_extensions_that_fail_are_passed_over_with_one_warning_each(started: Workers) -> None:
    cells = [
        Cell(ours, theirs, True, failure)
        for ours, theirs in (("1.1.4", "1.1.3.post1"), ("2.3.2.post1", "1.7.0"))
        for failure in (emulated.UNDEFINED_SYMBOL, emulated.NO_KERNEL_IMAGE)
    ]
    for cell, outcome in outcomes_of(cells, started).items():
        assert outcome.works, (cell, outcome)
        assert sorted(said.split(":")[0] for said in outcome.warnings) == [
            "causal_conv1d",
            "selective_scan",
        ]
        assert all(cell.failure in said for said in outcome.warnings if cell.failure)


def test_a_cell_without_triton_fails_where_there_is_one(started: Workers) -> None:
    pytest.importorskip("triton")
    cell = Cell("1.2.2", None, True, triton=False)
    assert "expected no Triton here" in str(outcomes_of([cell], started)[cell].raised)
