"""A run in pieces goes on where it was. It takes no verdict of another state of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.joints import pieces, record
from tests.joints.declared import joints
from tests.joints.page import page
from tests.joints.pieces import Line, Pieces, Run, described, lines, source_of
from tests.joints.verdicts import Judged, Verdict

EVERY = joints()
ONE, OTHER = EVERY["deepcopy"], EVERY["func.vjp"]
FOUND = Judged(Verdict.RIGHT, "as it was")
EARLIER = Run("2026-01-02", "0badc0de", "abc1234", "Python 3.12.3, torch 2.11.0")


def test_what_is_kept_is_found_again(tmp_path: Path) -> None:
    kept = Pieces(tmp_path / "made" / "joints.jsonl")
    assert kept.found(EVERY) == {}
    kept.add(ONE, "Mamba", FOUND)
    kept.add(OTHER, "LM Mamba2", Judged(Verdict.WORSE))
    assert Pieces(tmp_path / "made" / "joints.jsonl").found(EVERY) == {
        (ONE.name, "Mamba"): FOUND,
        (OTHER.name, "LM Mamba2"): Judged(Verdict.WORSE),
    }


def test_a_line_that_was_not_written_to_its_end_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "joints.jsonl"
    kept = Pieces(path)
    kept.add(ONE, "Mamba", FOUND)
    kept.add(ONE, "Mamba2", FOUND)
    path.write_text(path.read_text()[:-20])
    assert Pieces(path).found(EVERY) == {(ONE.name, "Mamba"): FOUND}


@pytest.mark.parametrize("field", ["code", "libraries"])
def test_what_other_code_or_libraries_gave_is_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    kept = Pieces(tmp_path / "joints.jsonl")
    kept.add(ONE, "Mamba", FOUND)
    here = described()
    monkeypatch.setattr(pieces, "described", lambda: here._replace(**{field: "another"}))
    assert kept.found(EVERY) == {}
    monkeypatch.setattr(pieces, "described", lambda: here._replace(day="another", commit=""))
    assert kept.found(EVERY) == {(ONE.name, "Mamba"): FOUND}


@pytest.mark.parametrize(
    ("old", "new", "runs_anew"),
    [
        ("    module.zero_grad()\n    return module", "    return module", True),  # in a helper
        ("import copy\n", "import copy as unused\n", True),
        ('@joint("deepcopy")', '@joint("deepcopy", slow=True)', True),
        ("pickle.loads(pickle.dumps(_used(s)))", "_used(s)", False),  # in another joint
        ("import gc\n", "import gc as unused\n", False),
    ],
)
def test_a_joint_depends_on_what_its_function_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, runs_anew: bool
) -> None:
    text = (pieces.FOLDER / "lifetimes.py").read_text()
    assert old in text
    before = source_of(ONE)
    (tmp_path / "lifetimes.py").write_text(text.replace(old, new))
    pieces._statements.cache_clear()
    monkeypatch.setattr(pieces, "FOLDER", tmp_path)
    try:
        assert (source_of(ONE) != before) == runs_anew
    finally:
        pieces._statements.cache_clear()


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("jetson_mamba/ops/op.py", True),
        ("vendored_overrides/known.json", True),
        ("tests/joints/workers.py", True),
        ("jetson_mamba/cli/main.py", False),
        ("jetson_mamba/kernels/scan.cu", False),
        ("tests/joints/training.py", False),
        ("tests/joints/page.py", False),
        ("tests/joints/test_page.py", False),
    ],
)
def test_code_is_what_rows_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, counts: bool
) -> None:
    monkeypatch.setattr(pieces, "REPOSITORY", tmp_path)
    monkeypatch.setattr(pieces, "FOLDER", tmp_path / "tests" / "joints")
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    digests = []
    for text in ("one", "other"):
        file.write_text(text)
        pieces.code.cache_clear()
        digests.append(pieces.code())
    pieces.code.cache_clear()
    assert (digests[0] != digests[1]) == counts


def test_a_line_says_which_code_it_is_of(tmp_path: Path) -> None:
    Pieces(tmp_path / "joints.jsonl").add(ONE, "Mamba", FOUND)
    *_, source, run = json.loads((tmp_path / "joints.jsonl").read_text())
    assert source == source_of(ONE)
    assert Run(*run).code == pieces.code()


def line(joint: str, subject: str, verdict: Verdict, run: Run, source: str = "") -> Line:
    """Of that joint as it is, where no source is given."""
    return Line(joint, subject, verdict.name, "", source or source_of(EVERY[joint]), run)


def test_a_page_is_made_of_runs_on_several_machines_and_says_which(tmp_path: Path) -> None:
    here = described()._replace(commit="def5678")
    rows = record.with_lines(
        {},
        [
            line(ONE.name, "Mamba", Verdict.WORSE, EARLIER),
            line(ONE.name, "Mamba2", Verdict.RIGHT, EARLIER),
            line(OTHER.name, "LM Mamba2", Verdict.SILENT, EARLIER),
            line(ONE.name, "Mamba", Verdict.RIGHT, here),
        ],
    )
    record.write(rows, tmp_path / "record.json")
    assert record.read(tmp_path / "record.json") == rows
    text = page(record.of_these_joints(rows, EVERY))
    assert "2 of 3 rows pass" in text
    assert "of 3 it is known which code they are of" in text
    assert f"| a | 1 | {here.day} | def5678 ({here.code}) | {here.libraries} |" in text
    assert "| b | 2 | 2026-01-02 | abc1234 (0badc0de) | Python 3.12.3, torch 2.11.0 |" in text
    assert f"| {ONE.name} | ✓ a | ✓ | ? |" in text
    assert "**differs**" in text.partition(f"| {OTHER.name} |")[2].partition("\n")[0]
    assert "**worse**" not in text.partition("\n## ")[2]


def test_a_state_of_the_code_has_one_commit() -> None:
    """It may have been run before it was committed, or after a commit that changed joints alone."""
    rows = record.with_lines(
        {},
        [
            line(ONE.name, "Mamba", Verdict.RIGHT, EARLIER._replace(commit="")),
            line(ONE.name, "Mamba2", Verdict.RIGHT, EARLIER),
        ],
    )
    assert {kept.run for kept in rows.values()} == {EARLIER}


def test_a_verdict_of_a_joint_that_was_changed_since_is_none() -> None:
    rows = record.with_lines({}, [line(ONE.name, "Mamba", Verdict.RIGHT, EARLIER, "of before")])
    assert record.of_these_joints(rows, EVERY) == {}


def test_a_row_that_ran_nothing_is_none(tmp_path: Path) -> None:
    lacking = line(ONE.name, "Mamba", Verdict.ABSENT, EARLIER)
    assert record.with_lines({}, [lacking]) == {}
    path = tmp_path / "joints.jsonl"
    path.write_text(json.dumps(lacking) + "\n")
    assert [*lines([path])] == [lacking]
