"""A subject for each joint, so that together they meet every subject: none worse with the hook."""

from __future__ import annotations

from typing import Iterator

import pytest

from tests import interpreters
from tests.joints.declared import BLOCKS, joints
from tests.joints.page import PAGE
from tests.joints.rows import Judge
from tests.joints.subjects import SUBJECTS

EVERY = joints()
# Whole models take torch's tracers many times as long as a block; ``make joints`` has them all.
TRACED = ("compiling", "tracing")


def chosen() -> list[tuple[str, str]]:
    """Each joint that is not slow with the next of its subjects in turn; blocks where traced."""
    rows = []
    for number, joint in enumerate(each for each in EVERY.values() if not each.slow):
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
    assert judged.verdict.passes, f"{judged.verdict.value}: {judged.why}"


def test_the_table_in_the_documentation_has_every_joint_and_subject() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [name for name in EVERY if f"| {name} |" not in page] == [], "make joints writes it"
    assert all(f" {name}" in page for name in SUBJECTS)
