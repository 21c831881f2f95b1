"""A run in pieces goes on where it was, and takes no verdict of another state of the code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.joints import pieces
from tests.joints.declared import joints
from tests.joints.pieces import Pieces
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
