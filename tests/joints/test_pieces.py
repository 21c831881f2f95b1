"""A run in pieces goes on where it was, and takes no verdict of another state of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.joints import pieces
from tests.joints.declared import joints
from tests.joints.page import page
from tests.joints.pieces import Pieces, collected, described
from tests.joints.verdicts import Judged, Verdict

EVERY = joints()
ONE, OTHER = EVERY["deepcopy"], EVERY["func.vjp"]
FOUND = Judged(Verdict.RIGHT, "as it was")


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


def test_what_other_code_gave_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Pieces(tmp_path / "joints.jsonl")
    kept.add(ONE, "Mamba", FOUND)
    monkeypatch.setattr(pieces, "_shared", lambda: "of another package")
    assert kept.found(EVERY) == {}


@pytest.mark.parametrize(
    ("old", "new", "runs_anew"),
    [
        ("    module.zero_grad()\n    return module", "    return module", True),  # in a helper
        ("import copy\n", "import copy as unused\n", True),
        ("pickle.loads(pickle.dumps(_used(s)))", "_used(s)", False),  # in another joint
        ("import gc\n", "import gc as unused\n", False),
    ],
)
def test_a_joint_depends_on_what_its_function_uses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, runs_anew: bool
) -> None:
    text = (pieces.FOLDER / "lifetimes.py").read_text()
    assert old in text
    before = pieces._source(ONE)
    (tmp_path / "lifetimes.py").write_text(text.replace(old, new))
    pieces._statements.cache_clear()
    monkeypatch.setattr(pieces, "FOLDER", tmp_path)
    try:
        assert (pieces._source(ONE) != before) == runs_anew
    finally:
        pieces._statements.cache_clear()


def test_the_state_is_a_digest(tmp_path: Path) -> None:
    Pieces(tmp_path / "joints.jsonl").add(ONE, "Mamba", FOUND)
    (state, *_) = json.loads((tmp_path / "joints.jsonl").read_text())
    assert len(state) == 64


def test_a_page_is_made_of_runs_on_several_machines_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    Pieces(there).add(ONE, "Mamba", Judged(Verdict.WORSE))
    Pieces(there).add(ONE, "Mamba2", FOUND)
    ours = described()
    monkeypatch.setattr(pieces, "described", lambda: "2026-11-28: Python 3.12.3, torch 2.11.0")
    monkeypatch.setattr(pieces, "_shared", lambda: "of another machine")
    Pieces(there).add(OTHER, "LM Mamba2", Judged(Verdict.SILENT))
    Pieces(here).add(ONE, "Mamba", FOUND)
    text = page(*collected([there, here], EVERY))
    assert "2 of 3 rows pass" in text
    assert f"1 rows on {ours}." in text
    assert "2 rows on 2026-11-28: Python 3.12.3, torch 2.11.0." in text
    assert "**differs**" in text.partition(f"| {OTHER.name} |")[2].partition("\n")[0]
    assert "**worse**" not in text.partition("\n## ")[2]
