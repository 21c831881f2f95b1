"""Which spec the hook has for each module that it is asked for."""

from __future__ import annotations

import sys
import warnings
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jetson_mamba import advice, kernel_packages
from jetson_mamba.errors import Refused
from jetson_mamba.finder import EXTENSIONS, JOINED, TARGETS, Finder
from jetson_mamba.hook import loader
from jetson_mamba.hook.loader import Joining, Loader
from jetson_mamba.hook.stand_in import StandInLoader
from jetson_mamba.hook.stand_in.moved import MovedLoader
from jetson_mamba.releases import instead

NORM, OLD_NORM = "mamba_ssm.ops.triton.layer_norm", "mamba_ssm.ops.triton.layernorm"
BESIDE = "mamba_ssm.ops.triton.other"


ROOTS = ("mamba_ssm", "vim", "transformers", *EXTENSIONS)


class Others:
    """A finder that stands after ours, and has the specs that it is given.

    Any other module is ``rest``'s, the finders that there are.
    """

    def __init__(self, rest: Any = ()) -> None:
        self.rest = rest
        self.specs: dict[str, ModuleSpec] = {}
        self.asked: list[tuple[Any, ...]] = []

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """The spec of that name, if there is one."""
        if name.partition(".")[0] not in ROOTS:
            found = (each.find_spec(name, path, target) for each in self.rest)
            return next(filter(None, found), None)
        self.asked.append((name, path, target))
        return self.specs.get(name)

    def has(self, name: str, folder: Path | None = None, text: str = "") -> ModuleSpec:
        """Have a module: a file in a folder, or one that another kind of loader loads."""
        kind: Any = object()
        if folder is not None:
            file = folder / f"{name.rpartition('.')[2]}.py"
            file.write_text(text)
            kind = SourceFileLoader(name, str(file))
        self.specs[name] = ModuleSpec(name, kind, origin="/x.py")
        return self.specs[name]


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> Others:
    """The only finder beside ours."""
    found = Others([*sys.meta_path])
    monkeypatch.setattr(sys, "meta_path", [finder_of("on"), found])
    return found


def finder_of(mode: str, stand_in: bool = True) -> Finder:
    return Finder(mode, stand_in)


def ours() -> Finder:
    finder: Any = sys.meta_path[0]
    assert isinstance(finder, Finder)
    return finder


ELSEWHERE = "vim.ops.selective_scan_interface"


@pytest.mark.parametrize("name", [TARGETS[0], ELSEWHERE])
@pytest.mark.parametrize("plain", [True, False])
def test_a_target_has_the_loader_of_ours_around_its_own(
    name: str, plain: bool, others: Others, tmp_path: Path
) -> None:
    """In another package only where a plain file is behind it."""
    own = others.has(name, tmp_path if plain else None)
    before: Any = own.loader
    found = ours().find_spec(name, ["/path"], None)
    assert found is own
    if name == ELSEWHERE and not plain:
        assert own.loader is before
    else:
        made: Any = own.loader
        assert type(made) is Loader and made.original is before
        assert (made.spec, made.target, made.finder) == (own, TARGETS[0], ours())
        assert made.is_target is (name == TARGETS[0])
    assert others.asked == [(name, ["/path"], None)]


def test_a_target_without_a_loader_or_a_spec_stays_so(others: Others) -> None:
    others.specs[TARGETS[0]] = namespace = ModuleSpec(TARGETS[0], None)
    assert ours().find_spec(TARGETS[0], ["/path"]) is namespace and namespace.loader is None
    others.specs.clear()
    assert ours().find_spec(TARGETS[0], ["/path"]) is None
    assert ours().find_spec(ELSEWHERE, ["/path"]) is None


@pytest.mark.parametrize(("name", "other"), [(NORM, OLD_NORM), (OLD_NORM, NORM)])
def test_a_norm_that_a_release_has_under_the_other_name_is_that(
    name: str, other: str, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ours().find_spec(name, ["/path"]) is None
    others.has(other)
    found = ours().find_spec(name, ["/path"])
    assert found is not None and found.name == name
    made: Any = found.loader
    assert type(made) is MovedLoader and (made.other, made.target) == (other, name)
    assert others.asked[-2:] == [(name, ["/path"], None), (other, ["/path"], None)]
    ours().stand_in = False
    assert ours().find_spec(name, ["/path"]) is None
    ours().stand_in = True
    assert ours().find_spec(f"vim.triton.{name.rpartition('.')[2]}", ["/path"]) is None
    monkeypatch.setitem(sys.modules, "jetson_mamba.hook.stand_in.moved", None)
    monkeypatch.delattr("jetson_mamba.hook.stand_in.moved", raising=False)
    assert ours().find_spec(name, ["/path"]) is None


@pytest.mark.parametrize(
    ("text", "plain", "has_ours"),
    [
        ("import triton\n", True, True),
        ("import triton\n", False, False),
        ("import torch\n", True, False),
    ],
)
def test_another_module_has_it_where_its_text_has_kernels(
    text: str, plain: bool, has_ours: bool, others: Others, tmp_path: Path
) -> None:
    own = others.has(BESIDE, tmp_path if plain else None, text)
    before: Any = own.loader
    assert ours().find_spec(BESIDE, ["/path"]) is own
    made: Any = own.loader
    assert (type(made) is Loader) is has_ours
    assert made is before if not has_ours else (made.target, made.is_target) == (BESIDE, False)
    assert ours().find_spec("mamba_ssm.none", ["/path"]) is None


def test_another_module_whose_text_cannot_be_read_is_left_alone(
    others: Others, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = others.has(BESIDE, tmp_path, "import triton\n")
    before: Any = own.loader
    (tmp_path / "other.py").unlink()
    assert ours().find_spec(BESIDE, ["/path"]) is own and own.loader is before
    (tmp_path / "other.py").write_text("import triton\n")
    monkeypatch.setitem(sys.modules, "jetson_mamba.kernel_packages", None)
    monkeypatch.delattr("jetson_mamba.kernel_packages", raising=False)
    assert ours().find_spec(BESIDE, ["/path"]) is own and own.loader is before


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.parametrize("plain", [True, False])
def test_a_module_that_is_joined_keeps_its_loader_inside(
    name: str, plain: bool, others: Others, tmp_path: Path
) -> None:
    assert ours().find_spec(name, ["/path"]) is None
    own = others.has(name, tmp_path if plain else None)
    before: Any = own.loader
    assert ours().find_spec(name, ["/path"]) is own
    made: Any = own.loader
    assert (type(made) is Joining) is plain and (made is before) is not plain
    if plain:
        assert made.original is before and made.path == before.path
        for absent in ("__wrapped__", "absent"):
            with pytest.raises(AttributeError, match=absent):
                getattr(made, absent)


@pytest.mark.parametrize("name", EXTENSIONS)
def test_an_extension_can_fall_back_where_that_is_wanted(
    name: str, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ours().find_spec(name)
    assert found is not None and isinstance(found.loader, StandInLoader)
    own = others.has(name)
    assert ours().find_spec(name) is own and type(own.loader) is StandInLoader
    own = others.has(name)
    ours().stand_in = False
    assert ours().find_spec(name) is None
    ours().stand_in = True
    monkeypatch.setitem(sys.modules, "jetson_mamba.hook.stand_in", None)
    monkeypatch.delattr("jetson_mamba.hook.stand_in", raising=False)
    assert ours().find_spec(name) is own and type(own.loader) is object


def test_a_finder_that_was_taken_away_finds_nothing(others: Others) -> None:
    finder = ours()
    sys.meta_path.remove(finder)
    others.has(TARGETS[0])
    others.has(EXTENSIONS[0])
    for name in (TARGETS[0], EXTENSIONS[0]):
        assert finder.find_spec(name, ["/path"]) is None


def test_the_first_of_the_finders_that_has_it_counts(
    others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Older:
        """A finder of the kind that there was before Python 3.4."""

        def find_module(self, name: str, path: Any) -> Any:
            """A loader of one name."""
            return OfOlder() if name == TARGETS[1] else None

    class OfOlder:
        def load_module(self, name: str) -> None:
            """Nothing."""

    second = Others()
    theirs: Any = (Older(), second)
    sys.meta_path += theirs
    late, early = second.has(TARGETS[0]), others.has(TARGETS[0])
    assert ours().find_spec(TARGETS[0], ["/path"]) is early is not late
    monkeypatch.setattr(sys, "version_info", (3, 11, 9))
    found = ours().find_spec(TARGETS[1], ["/path"])
    assert found is not None
    made: Any = found.loader
    assert isinstance(made.original, OfOlder)
    assert ours().find_spec(TARGETS[2], ["/path"]) is None
    monkeypatch.setattr(sys, "version_info", (3, 12, 0))
    assert ours().find_spec(TARGETS[1], ["/path"]) is None


# What is said.


def said(name: str, reason: str, finder: Finder) -> list[str]:
    """The warnings of leaving a target."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader.leave(finder, name, reason, "do it")
    assert all(each.category is RuntimeWarning for each in caught)
    return [str(each.message) for each in caught]


def test_a_target_that_stays_is_said_once_for_each_reason() -> None:
    finder = finder_of("on")
    words = "a stays as it is installed: it is old. What to do: do it."
    assert said("a", "it is old", finder) == [words]
    assert said("a", "it is old", finder) == []
    assert said("b", "it is old", finder) == [words.replace("a stays", "b stays")]
    assert len(said("a", "it is new", finder)) == 1
    assert finder.outcomes == {"a": "it is new", "b": "it is old"}
    strict = finder_of("strict")
    for _ in range(2):
        with pytest.raises(ImportError, match="a stays as it is installed: x") as raised:
            loader.leave(strict, "a", "x", "y")
        assert raised.value.name == "a"
    assert strict.outcomes == {}
    with pytest.warns(RuntimeWarning):
        assert loader.leave(finder, "c", "x", "y").startswith("c stays as it is installed: x. ")


def test_it_is_said_of_the_statement_that_imports() -> None:
    """Past the one that calls, and what the import system has between."""

    def statement() -> Any:
        return called()

    def called() -> Any:
        return between()

    def between() -> Any:
        return loader.leave(finder_of("on"), "a", "x", "y")

    with pytest.warns(RuntimeWarning) as caught:
        statement()
    assert caught[0].lineno == statement.__code__.co_firstlineno + 1


def imported(monkeypatch: pytest.MonkeyPatch, name: str, own: Any) -> None:
    module = ModuleType(name)
    module.__spec__ = ModuleSpec(name, own, origin="/x.py")
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("active", [True, False])
def test_a_target_that_went_past_the_finder_is_told_with_what_helps(
    active: bool, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TARGETS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    finder = ours()
    loader.warn_of_bypassed_targets(finder)
    imported(monkeypatch, TARGETS[2], object())
    served: Any = Loader.__new__(Loader)
    served.outcome = "it needs no change"
    imported(monkeypatch, TARGETS[1], served)
    running: Any = Loader.__new__(Loader)
    running.outcome = None
    imported(monkeypatch, TARGETS[3], running)
    monkeypatch.setitem(sys.modules, TARGETS[4], ModuleType(TARGETS[4]))
    if active:
        sys.meta_path[:] = [others, finder]
        reason = "another import hook took it first (object)"
        helps = "install that hook before jetson_mamba, or import jetson_mamba after it"
    else:
        sys.meta_path[:] = [others]
        reason = "it was imported before jetson_mamba was activated"
        helps = "import jetson_mamba first"
    with pytest.warns(RuntimeWarning) as caught:
        loader.warn_of_bypassed_targets(finder)
        loader.warn_of_bypassed_targets(finder)
    (warned,) = caught
    assert str(warned.message) == (
        f"{TARGETS[2]} stays as it is installed: {reason}. What to do: {helps}."
    )
    assert finder.outcomes == {TARGETS[2]: reason, TARGETS[1]: "it needs no change"}
    # From here on it is asked first again.
    assert sys.meta_path == ([finder, others] if active else [others])


@pytest.mark.parametrize(
    ("error", "reason", "whole"),
    [
        (Refused("its text is not known"), "its text is not known", True),
        (KeyError("x"), "jetson_mamba failed on it (KeyError: 'x')", True),
        (ImportError("no x"), "jetson_mamba is not installed whole (no x)", False),
        (OSError("no x"), "jetson_mamba is not installed whole (no x)", False),
    ],
)
def test_why_there_is_no_copy_is_told_with_what_helps(
    error: Exception, reason: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(instead, "for_a_text", lambda path: f"replace {path}")
    monkeypatch.setattr(advice, "repair", lambda: "repair it")
    with_path = SourceFileLoader("a", "/a.py")
    for own, path in ((with_path, "/a.py"), (object(), None)):
        helps = f"replace {path}" if whole else "repair it"
        assert loader._reason_and_advice(error, own) == (reason, helps)

    def fails(*_: object) -> str:
        raise KeyError("half")

    monkeypatch.setattr(instead, "for_a_text", fails)
    monkeypatch.setattr(advice, "repair", fails)
    helps = "install jetson_mamba again, or set JETSON_MAMBA=off to silence this"
    assert loader._reason_and_advice(error, with_path) == (reason, helps)


def test_what_a_module_lacks_is_asked_of_the_modules_of_mamba_ssm_alone(
    tmp_path: Path, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def lacking(source: bytes, importing: bool = False) -> dict[str, str]:
        asked.append((source, importing))
        return {"triton": "none"}

    monkeypatch.setattr(kernel_packages, "lacking", lacking)
    for name, plain, lacks in (
        (BESIDE, True, {"triton": "none"}),
        (BESIDE, False, {}),
        (ELSEWHERE, True, {}),
    ):
        spec = others.has(name, tmp_path if plain else None, "import triton\n")
        assert Loader(ours(), spec, TARGETS[0])._lacking() == lacks
    assert asked == [(b"import triton\n", True)]
