"""The code keeps to the plan of its rooms.

Imports run down them, and the picture of them is the code's.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tools import rooms


def test_no_arrow_runs_up() -> None:
    assert rooms.upward() == []


def test_every_room_is_in_the_plan_and_is_there() -> None:
    found = {rooms.room(name) for name, _ in rooms.modules()}
    assert found - {None} == set(rooms.rows())


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
        for folder in (rooms.PACKAGE, "vendored_overrides", "tools", "benchmarks", "tests")
        for path in (rooms.ROOT / folder).rglob("*.py")
        if "copies" not in path.parts
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > 500
    }
    assert long == {}


OPS = rooms.ROOT / rooms.PACKAGE / "ops"
OF_ONE_SHAPE = sorted(each for each in OPS.iterdir() if each.is_dir() and each.name[0] not in "_.")


@pytest.mark.parametrize("op", OF_ONE_SHAPE, ids=lambda op: op.name)
def test_an_op_is_a_package_with_a_face_that_only_imports(op: Path) -> None:
    if op.name == "any_form":  # what other packages import in place of extensions
        return
    assert (op / "op.py").exists()
    text = (op / "__init__.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 50
    docstring, *body = ast.parse(text).body
    assert isinstance(docstring, ast.Expr)
    assert all(
        isinstance(each, ast.ImportFrom)
        or (isinstance(each, ast.Assign) and ast.unparse(each.targets[0]) == "__all__")
        for each in body
    )


def test_ops_lie_in_packages() -> None:
    assert [each.name for each in OPS.glob("*.py")] == ["__init__.py"]


def test_ops_look_for_no_module_of_upstream() -> None:
    for path in OPS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert not node.value.startswith("mamba_ssm."), path
        assert not any(
            each.partition(".")[0] == "mamba_ssm" for each in rooms.imported("x", path)
        ), path


@pytest.mark.parametrize(
    "folder", ["jetson_mamba", "vendored_overrides", "tools", "benchmarks", "tests"]
)
def test_a_module_does_one_thing(folder: str) -> None:
    """Its first sentence says what without an "and"."""
    several = {}
    for path in (rooms.ROOT / folder).rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        docstring = ast.get_docstring(ast.parse(text)) or ""
        first = re.split(r"(?<=\.)\s", docstring, maxsplit=1)[0].replace("\n", " ")
        if "copies" not in path.relative_to(rooms.ROOT).parts and (not first or " and " in first):
            several[str(path.relative_to(rooms.ROOT))] = first
    assert several == {}


def test_no_file_of_the_tree_is_a_link() -> None:
    """Where git or an archive has none, it becomes a text file, and a startup file says nothing."""
    folders = ("jetson_mamba", "vendored_overrides", "tools", "tests", "docs", "benchmarks")
    files = [
        *rooms.ROOT.glob("*.*"),
        *(p for each in folders for p in (rooms.ROOT / each).rglob("*")),
    ]
    assert [path for path in files if path.is_symlink()] == []
