"""A subject for each joint, so that together they meet every subject: none worse with the hook."""

from __future__ import annotations

from typing import Iterator

import pytest

from tests import interpreters
from tests.joints import record
from tests.joints.declared import BLOCKS, joints
from tests.joints.page import PAGE, page
from tests.joints.rows import Judge
from tests.joints.subjects import SUBJECTS
from tests.joints.verdicts import Verdict

EVERY = joints()
# Whole models take torch's tracers many times as long as a block; ``make joints`` has them all.
TRACED = ("compiling", "tracing")
# Libraries that need not be there, groups of processes, and what is slow to watch.
LEFT_OUT = ("adapters", "spreading", "watching")


def chosen() -> list[tuple[str, str]]:
    """Each joint that is not slow with the next of its subjects in turn; blocks where traced."""
    rows = []
    quick = [each for each in EVERY.values() if not each.slow and each.area not in LEFT_OUT]
    for number, joint in enumerate(quick):
        subjects = [name for name, kind in SUBJECTS.items() if joint.fits(name, kind)]
        if joint.area in TRACED:
            small = [name for name in subjects if SUBJECTS[name] == BLOCKS]
            subjects = small or subjects
        rows.append((joint.name, subjects[number % len(subjects)]))
    return rows


ROWS = chosen()


@pytest.fixture(scope="module")
def judge() -> Iterator[Judge]:
    with Judge(interpreters.copies()) as judge:
        yield judge


def test_every_subject_is_met_and_joints_are_many() -> None:
    assert {subject for _, subject in ROWS} == set(SUBJECTS)
    assert len(ROWS) >= 80


@pytest.mark.parametrize(("name", "subject"), ROWS, ids=lambda part: part)
def test_no_worse_than_without_the_hook(name: str, subject: str, judge: Judge) -> None:
    judged = judge(EVERY[name], subject)
    if judged.verdict is Verdict.ABSENT:
        pytest.skip(judged.why)
    assert judged.verdict.passes, f"{judged.verdict.value}: {judged.why}"


def test_the_page_is_of_its_record_and_of_the_joints_that_there_are() -> None:
    rows = record.of_these_joints(record.read(), EVERY)
    assert PAGE.read_text(encoding="utf-8") == page(rows), "python -m tests.joints --page"


def test_no_verdict_on_the_page_is_worse() -> None:
    failing = [row for row, kept in record.read().items() if not kept.verdict.passes]
    assert failing == []
