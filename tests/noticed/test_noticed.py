"""The tool that changes the code tells which tests notice it.

What it changes, and what it leaves alone.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.noticed import executed, parts
from tests.noticed import survey as noticed
from tests.noticed.changes import change, sample
from tests.noticed.harmless import HARMLESS

pytest.importorskip("mutmut")

TEXT = '''"""A docstring."""

import os
from typing import TYPE_CHECKING, Tuple, TypeVar

if TYPE_CHECKING:
    import sys

__all__ = ["key"]
Key = Tuple[int, str]
Of = TypeVar("Of", bound=Key)


def key(x: int, limit: int = 3) -> tuple[int, str]:
    """Another, with a 1 in it."""
    flag: bool = False
    if x < limit:
        raise ValueError("words for people 1", "utf-8")
    return x, os.sep, "part"
'''


def test_each_kind_of_change_is_made_in_one_place_of_what_runs() -> None:
    drawn = sample(TEXT, 1000, random.Random(0))
    made = {(each.before, each.after) for each in drawn}
    check, head = "if x < limit:", "def key(x: int, limit: int = {}) -> tuple[int, str]:"
    for before, after in (
        (check, "if x <= limit:"),
        (check, "if False:"),
        (head.format(3), head.format(4)),
        ('return x, os.sep, "part"', "return"),
        ('"""Another, with a 1 in it."""', "pass"),
    ):
        assert (before, after) in made
    after_all = {after for _, after in made}
    assert ("flag: bool = False", "flag: bool = True") in made
    assert "flag: bool = None" not in after_all
    assert not any("UTF-8" in each for each in after_all)
    assert any("XXutf-8XX" in each for each in after_all)
    left_out = {after.rstrip(",") for before, after in made if before.startswith("return x")}
    assert left_out & {'return os.sep, "part"', 'return x, "part"', "return x, os.sep"}
    for each in drawn:
        compile(each.text, "changed", "exec")
        assert change(TEXT, each.text) == each
        assert each.line >= TEXT.splitlines().index(head.format(3))
    assert sample(TEXT, 1000, random.Random(0)) == drawn
    assert sample(TEXT, 3, random.Random(1)) != sample(TEXT, 3, random.Random(2))


@pytest.mark.parametrize("part", parts.PARTS)
def test_every_file_has_tests_that_are_there(part: str) -> None:
    files = parts.files(part)
    assert files
    for file in files:
        assert (parts.REPOSITORY / file).exists()
        assert any(parts.tests(part, file))
    for name in f"{' '.join(parts.OWN.values())} {parts.ALL[part]}".split():
        assert any((parts.REPOSITORY / "tests").glob(name)), name


def test_every_one_is_of_a_line_that_is_there() -> None:
    for each in HARMLESS:
        lines = (parts.REPOSITORY / each.file).read_text("utf-8").splitlines()
        assert each.before in {line.strip() for line in lines}, each
        assert each.reason and each.before != each.after


def test_a_change_is_noticed_by_the_test_that_fails_and_undone(tmp_path: Path) -> None:
    """Also where one follows another at once, in a text of the same length."""
    file = Path("package.py")
    (tmp_path / file).write_text("def three():\n    return 3\n")
    (tmp_path / "test_first.py").write_text("def test_passes():\n    pass\n")
    (tmp_path / "test_second.py").write_text(
        "import package\n\n\ndef test_three():\n    assert package.three() == 3\n"
    )
    tests = ["test_second.py::test_three", "test_first.py::test_passes"]
    text = (tmp_path / file).read_text()
    for new, by in (("4", "FAILED test_second.py::test_three"), ("3 ", None), ("5", "FAILED")):
        found = noticed.noticing(tmp_path, file, change(text, text.replace("3", new)), tests, 60)
        assert found is None if by is None else found is not None and found.startswith(by)
        assert (tmp_path / file).read_text() == text


def test_no_bytecode_is_left_of_a_module_that_is_written(tmp_path: Path) -> None:
    file = tmp_path / "package.py"
    kept = tmp_path / "__pycache__"
    kept.mkdir()
    for name in ("package.cpython-312.pyc", "package.cpython-312.opt-1.pyc", "package_b.x.pyc"):
        (kept / name).touch()
    noticed.write(file, "x = 1\n")
    assert [each.name for each in kept.iterdir()] == ["package_b.x.pyc"]
    assert file.read_text() == "x = 1\n"


def test_a_test_that_fails_without_a_change_notices_nothing(tmp_path: Path) -> None:
    (tmp_path / "package.py").write_text("x = 1\n")
    (tmp_path / "test_it.py").write_text("def test_it():\n    raise ValueError\n")
    changed = change("x = 1\n", "x = 2\n")
    with pytest.raises(RuntimeError, match=r"test_it\.py::test_it fails without"):
        noticed.noticing(tmp_path, Path("package.py"), changed, ["test_it.py"], 60)


def test_the_copy_is_of_the_tree_and_apart_from_it(tmp_path: Path) -> None:
    noticed.copy(tmp_path / "tree")
    for name in ("jetson_mamba/__init__.py", "tests/noticed/parts.py", "pyproject.toml"):
        source, copied = parts.REPOSITORY / name, tmp_path / "tree" / name
        assert copied.read_bytes() == source.read_bytes()
        assert not copied.samefile(source)


def test_each_worker_has_a_copy_of_its_own(tmp_path: Path) -> None:
    with noticed.workers(2, str(tmp_path)) as pool:
        used = set(pool.map(copy_of_the_worker, range(4)))
    copies = {each / "tree" for each in tmp_path.iterdir()}
    assert len(copies) == 2 and used <= copies
    assert all((each / "jetson_mamba" / "__init__.py").exists() for each in copies)


def copy_of_the_worker(_: int) -> Path:
    """Where the copy of the process that runs this stands."""
    return executed.tree


PACKAGE = '''"""A package."""

import os
import sys

LIMIT = 3


def chosen(number):
    """One of two."""
    if number > LIMIT:
        return "much"
    return "little"


def other():
    return (
        1,
        2,
    )


class _finder:
    pass
'''
TESTS = """\
import os, subprocess, sys

import pytest

CODE = "import jetson_mamba; jetson_mamba.chosen(9); jetson_mamba.other()"


@pytest.fixture(scope="module")
def shared():
    import jetson_mamba

    return jetson_mamba.other()


def test_little():
    import jetson_mamba

    assert jetson_mamba.chosen(1) == "little"


def test_much_in_a_process():
    subprocess.run([sys.executable, "-c", CODE], check=True, env={"PYTHONPATH": os.getcwd()})


def test_with_what_is_shared(shared):
    assert len(shared) == 2


def test_of_nothing():
    pass


def test_fails():
    import jetson_mamba

    assert jetson_mamba.chosen(1) == "much"


def test_fails_where_it_is_recorded():
    import jetson_mamba

    assert jetson_mamba.chosen(9) == "much" and "noticed_recorder" not in sys.modules
"""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small project whose tests were recorded; the folder of its copy."""
    monkeypatch.setattr(parts, "REPOSITORY", tmp_path / "tree")
    monkeypatch.setattr(executed, "KEPT", tmp_path / "kept")
    for name, text in (("jetson_mamba/__init__.py", PACKAGE), ("tests/test_it.py", TESTS)):
        file = tmp_path / "tree" / name
        file.parent.mkdir(parents=True)
        file.write_text(text)
    monkeypatch.setattr(executed, "tree", tmp_path / "tree")
    executed.record(map, ["tests/test_it.py"])
    return tmp_path / "tree"


def test_what_executes_a_line_is_known_wherever_it_runs(recorded: Path) -> None:
    module = Path("jetson_mamba/__init__.py")
    assert (recorded / module).read_text() == PACKAGE
    little, shares = "test_little", "test_with_what_is_shared"
    much, again = "test_much_in_a_process", "test_fails_where_it_is_recorded"
    for before, after, by in (
        ('return "little"', "return", [little]),
        ('return "much"', "return", [much, again]),
        ("if number > LIMIT:", "if False:", [little, much, again]),
        # A docstring whose function does nothing any more, and an element on a line of its own.
        ('"""One of two."""', "pass", [little, much, again]),
        # A fixture of the whole file is every later test's.
        ("        2,\n", "", [little, much, shares, "test_of_nothing", again]),
        # What runs at import is everybody's who calls something.
        ("LIMIT = 3", "LIMIT = 4", [little, much, shares, "test_of_nothing", again]),
    ):
        changed = change(PACKAGE, PACKAGE.replace(before, after))
        found = executed.executing([], ["tests/test_it.py"], module, changed)
        assert [each.name for each in found] == [f"tests/test_it.py::{each}" for each in by]


def test_a_constant_may_be_noticed_by_any_of_a_modules_own_tests(recorded: Path) -> None:
    (kept,) = executed.KEPT.iterdir()
    kept.write_text(json.dumps({**json.loads(kept.read_text()), "executed": {}}))
    changed = change(PACKAGE, PACKAGE.replace("LIMIT = 3", "LIMIT = 4"))
    files, module = ["tests/test_it.py"], Path("jetson_mamba/__init__.py")
    found = [each.name for each in executed.executing(files, [], module, changed)]
    # One of them fails without any change.
    assert len(found) == TESTS.count("def test_") - 1
    assert executed.executing([], files, module, changed) == []


def test_a_record_is_kept_until_its_tests_change(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (kept,) = executed.KEPT.iterdir()
    runs: list[list[str]] = []

    def run(tree: Path, files: list[str], *rest: object) -> str:
        runs.append(files)
        return "nothing"

    monkeypatch.setattr(executed, "_run", run)
    executed.record(map, ["tests/test_it.py"])
    assert runs == [] and kept.exists()
    (recorded / "tests" / "test_it.py").write_text(f"{TESTS}\n# changed\n")
    executed.record(map, ["tests/test_it.py"])
    assert runs == [["tests/test_it.py"]] and not kept.exists()


def test_the_own_and_the_quick_come_first_and_one_of_each_function() -> None:
    tests = [
        *(executed.Timed(f"tests/own.py::test_a[{number}]", 1.0 + number) for number in range(3)),
        executed.Timed("tests/own.py::test_b", 5.0),
        executed.Timed("tests/other.py::test_slow", 50.0),
        executed.Timed("tests/third.py::test_quick", 0.1),
    ]
    own = [f"tests/own.py::test_{each}" for each in ("a[0]", "b", "a[1]", "a[2]")]
    others = ["tests/third.py::test_quick", "tests/other.py::test_slow"]
    assert executed.ordered(tests, ["tests/own.py"], 100) == [*own, *others]
    assert executed.ordered(tests, ["tests/own.py"], 7) == [*own[:2], others[0]]
    # One that takes longer than may be is better than none.
    assert executed.ordered(tests[4:5], ["tests/own.py"], 7) == ["tests/other.py::test_slow"]
