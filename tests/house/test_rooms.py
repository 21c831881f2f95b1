"""Imports run down the rooms, and the picture of them is the code's."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tools import rooms


def test_no_arrow_runs_up() -> None:
    assert rooms.upward() == []


def test_every_room_is_in_the_plan_and_is_there() -> None:
    found = {each for pair in rooms.arrows() for each in pair}
    assert found == set(rooms.rows())


def test_an_arrow_that_runs_up_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "arrows", lambda: {("dispatch", "ops"): ["jetson_mamba.dispatch.x"]})
    assert rooms.upward() == [
        "jetson_mamba.dispatch.x: dispatch imports ops, which is not below it"
    ]


def test_the_picture_is_that_of_the_code() -> None:
    assert rooms.PICTURE.read_text(encoding="utf-8") == rooms.picture(), "python -m tools.rooms"


def test_a_relative_import_counts_as_what_it_reaches(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("from ..hook import loader\nfrom . import y\nimport torch\n")
    assert [*rooms.imported("jetson_mamba.ops.x", path)] == [
        "jetson_mamba.hook.loader",
        "jetson_mamba.ops.y",
        "torch",
    ]


@pytest.mark.parametrize("name", ["dispatch", "replay"])
def test_what_serves_every_op_names_none(name: str) -> None:
    ops = {each.name for each in (rooms.ROOT / rooms.PACKAGE / "ops").iterdir() if each.is_dir()}
    ops -= {"__pycache__", "any_form"}
    assert "ssd" in ops
    for path in (rooms.ROOT / rooms.PACKAGE / name).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
        assert not ops & texts, path


def test_no_file_is_too_long_to_be_read() -> None:
    long = {
        path.name: count
        for folder in (rooms.PACKAGE, "vendored_overrides", "tools", "benchmarks")
        for path in (rooms.ROOT / folder).rglob("*.py")
        if "copies" not in path.parts
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}
