"""What ``make boards`` runs, without running it. What it tells of each step is held too."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.boards import page, roots, steps
from tests.boards.declared import BOARDS, Board

SECTIONS = sorted({board.section for board in BOARDS})
CHINESE = (steps.FIRST_STEPS.parent / "first-steps.zh.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("section", SECTIONS)
def test_the_first_steps_are_the_same_commands_in_both_languages(section: str) -> None:
    given = steps.commands(section)
    assert given == steps.commands(section, CHINESE)
    assert any("jetson_mamba install" in each for each in given)
    assert any("jetson_mamba verify" in each for each in given)


def said(*told: tuple[str, int]) -> str:
    """A log, of what each command printed and its exit code."""
    return "".join(
        f"{steps.MARK} begin {10 * index}\n{text}\n\n{steps.MARK} end {10 * index + 7} {code}\n"
        for index, (text, code) in enumerate(told)
    )


def test_a_log_tells_what_each_step_came_to() -> None:
    log = said(
        ("one", 0),
        ("All 26 rows pass on cpu.\n10 more are not supported.\na warning", 0),
        ("two", 3),
    )
    log += f"{steps.MARK} begin 40\nhalf"
    assert steps.read(["a", "b", "c", "d"], log) == [
        steps.Step("a", 7, 0, "one"),
        steps.Step("b", 7, 0, "All 26 rows pass on cpu. 10 more are not supported."),
        steps.Step("c", 7, 3, "two"),
        steps.Step("d", 0, -1, "half"),
    ]


@pytest.fixture
def board(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Board:
    """A board whose steps are run by this machine's shell."""
    (tmp_path / "tmp").mkdir()
    (tmp_path / "root" / "jetson-mamba").mkdir(parents=True)
    given = ["export WORD=kept", "echo $WORD 1", "echo doctor && false", "test -e mended", "echo 4"]
    monkeypatch.setattr(steps, "commands", lambda section: given)
    monkeypatch.setattr(roots, "FOLDER", tmp_path)
    monkeypatch.setattr(
        roots,
        "command",
        lambda board, root, script: ["env", f"HOME={root}/root", "bash", f"{root}/tmp/{script}"],
    )
    return BOARDS[0]


def test_a_run_goes_on_at_the_step_that_failed(board: Board, tmp_path: Path) -> None:
    """What the shell was told before holds; the page says where it was taken up again."""
    steps.carry_out(board, tmp_path, page.log(board))
    before = page.result(board)
    assert [step["code"] for step in before["steps"]] == [0, 0, 1, 1]
    assert before["resumed"] == [] and not page.passed(board, before)
    (tmp_path / "root" / "jetson-mamba" / "mended").touch()
    first = steps.place(steps.commands(board.section), "mended")
    steps.carry_out(board, tmp_path, page.log(board), first)
    after = page.result(board)
    assert [step["code"] for step in after["steps"]] == [0, 0, 1, 0, 0]
    assert after["resumed"] == ["test -e mended"] and page.passed(board, after)
    assert re.search(r"taken up again at `test -e mended`", page.page({board.name: after}))
    with pytest.raises(ValueError, match="expected a part of one of"):
        steps.place(steps.commands(board.section), "nowhere")
