"""What commands print for people, with its styles, is what is written down."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.cli import bench, output
from jetson_mamba.errors import CannotRun
from tests.cli import printed


def test_every_command_prints_what_is_written_down() -> None:
    """``python -m tests.cli.printed`` writes it anew."""
    assert printed.everything() == printed.PRINTED.read_text(encoding="utf-8")


def test_numbers_and_paths_are_as_plain_as_words() -> None:
    to = io.StringIO()
    console = output.console(file=to, force_terminal=True, color_system="standard", width=80)
    console.print("12 of '/a/path' at http://a.b")
    assert to.getvalue() == "12 of '/a/path' at http://a.b\n"


@pytest.mark.parametrize(
    ("name", "kind", "writable", "said"),
    [
        ("new.png", None, True, None),
        ("old.png", "file", True, None),
        ("old.png", "file", False, "expected a file that can be written"),
        ("folder.png", "folder", True, "expected a file that can be written"),
        ("no/new.png", None, True, "expected a file in a folder that can be written"),
        ("new.svg", None, True, "expected a file whose name ends in .png"),
        ("png", None, True, "expected a file whose name ends in .png"),
    ],
)
def test_a_picture_that_cannot_be_written_is_told_before_anything_is_measured(
    name: str,
    kind: str | None,
    writable: bool,
    said: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / name
    if kind == "file":
        path.touch()
    elif kind == "folder":
        path.mkdir()
    monkeypatch.setattr(os, "access", lambda of, mode: writable and mode == os.W_OK)
    if said is None:
        bench._check_picture(path)
        return
    with pytest.raises(CannotRun) as raised:
        bench._check_picture(path)
    assert str(raised.value) == f"--plot {path}: {said}"


def test_a_picture_in_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def unwritable(folder: str) -> OSError:
        asked.append(folder)
        return OSError(30, "Read-only file system")

    monkeypatch.setattr("jetson_mamba.cli.bench.unwritable", unwritable)
    with pytest.raises(CannotRun, match="expected a file in a folder that can be written"):
        bench._check_picture(tmp_path / "new.png")
    assert asked == [str(tmp_path)]
