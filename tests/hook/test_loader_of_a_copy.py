"""What the loader of a target runs."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jetson_mamba import kernel_packages
from jetson_mamba.errors import LeftOut, Refused
from jetson_mamba.finder import TARGETS, Finder
from jetson_mamba.hook import copies, missing, unserved
from jetson_mamba.hook.copies import ModifiedCopy
from jetson_mamba.hook.loader import Joining, Loader

TARGET, ELSEWHERE, BESIDE = TARGETS[0], "vim.ops.selective_scan_interface", "mamba_ssm.ops.own"


class Runs:
    """A loader that notes what it runs."""

    def __init__(self, path: str = "/x.py", text: bytes = b"import selective_scan_cuda\n") -> None:
        self.path, self.text = path, text
        self.ran: list[ModuleType] = []
        self.error: Exception | None = None

    def exec_module(self, module: ModuleType) -> None:
        """Note it."""
        self.ran.append(module)
        if self.error is not None:
            raise self.error

    def get_data(self, path: str) -> bytes:
        """The text of its own file."""
        assert path == self.path
        return self.text


class ByName:
    """A loader of the oldest kind."""

    loaded = ""

    def load_module(self, name: str) -> None:
        """Note it."""
        self.loaded = name


class Case:
    """A loader of ours around another, what looks for its copy, and the module."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch, original: Any = None) -> None:
        original = original or Runs()
        self.original: Any = original
        self.copy: Any = None
        self.of_copy = Runs("/copy.py")
        self.looked: list[Any] = []
        self.sentences: list[str] = []
        self.finder = Finder("on", True)
        self.spec: Any = ModuleSpec(name, original, origin="/x.py")
        self.spec.cached = "/x.pyc"
        target = TARGET if name == ELSEWHERE else name
        loader: Any = Loader(self.finder, self.spec, target)
        self.loader: Any = loader
        self.spec.loader = loader
        self.module = ModuleType(name)
        self.module.__spec__, self.module.__loader__ = self.spec, loader
        vars(self.module).update(__file__="/x.py", __cached__="/x.pyc")

        def find(target: str, original: Any, without: Any) -> Any:
            self.looked.append((target, original, without))
            if isinstance(self.copy, Exception):
                raise self.copy
            return self.copy

        def execute(run: Any, module: ModuleType, sentence: str) -> None:
            self.sentences.append(sentence)
            run(module)

        monkeypatch.setattr(copies, "find", find)
        monkeypatch.setattr(copies, "loader_for", lambda modified, original: self.of_copy)
        monkeypatch.setattr(unserved, "execute", execute)


def a_copy(*left_out: tuple[str, str]) -> ModifiedCopy:
    of = tuple(LeftOut(*each) for each in left_out)
    return ModifiedCopy(TARGET, "/x.py", "/copy.py", "made", 3, b"", of)


@pytest.mark.parametrize("name", [TARGET, ELSEWHERE])
def test_a_copy_runs_as_the_module_whose_file_it_becomes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(name, monkeypatch)
    case.copy = a_copy(("a way past", "it is another"))
    for times in (1, 2):
        case.loader.exec_module(case.module)
        assert case.of_copy.ran == [case.module] * times and case.original.ran == []
    assert case.looked == [(TARGET, case.original, {})]
    assert case.module.__file__ == case.spec.origin == "/copy.py"
    assert vars(case.module)["__cached__"] is None and case.spec.cached is None
    assert case.loader.outcome is case.copy and case.finder.outcomes == {name: case.copy}
    assert case.spec.loader is case.loader and case.sentences == []
    assert case.loader.path == "/copy.py" and case.loader.left is None
    # From Python 3.15 on a module has no such name.
    del vars(case.module)["__cached__"]
    case.loader.exec_module(case.module)
    assert "__cached__" not in vars(case.module)


@pytest.mark.parametrize("name", [TARGET, ELSEWHERE])
def test_a_text_that_needs_no_change_runs_as_it_is(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target's module keeps the loader, by which it is known; another's has its own again."""
    case = Case(name, monkeypatch)
    case.loader.exec_module(case.module)
    assert case.original.ran == [case.module] and case.module.__file__ == "/x.py"
    assert case.spec.cached == "/x.pyc" and case.sentences == []
    assert case.loader.outcome == "it needs no change" and len(case.looked) == 1
    is_target = name == TARGET
    assert case.finder.outcomes == ({name: "it needs no change"} if is_target else {})
    assert (case.spec.loader is case.original) is not is_target
    assert case.module.__loader__ is case.spec.loader
    case.loader.exec_module(case.module)
    assert len(case.original.ran) == 2 and len(case.looked) == 1


@pytest.mark.parametrize("error", [Refused("it is new"), KeyError("x"), OSError("gone")])
def test_a_target_without_a_copy_runs_with_an_explanation(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(TARGET, monkeypatch)
    case.copy = error
    with pytest.warns(RuntimeWarning, match="stays as it is installed") as caught:
        case.loader.exec_module(case.module)
    assert case.original.ran == [case.module] and len(caught) == 1
    assert case.sentences == [case.loader.left] == [str(caught[0].message)]
    assert str(error.args[0]) in str(case.loader.outcome)
    assert case.finder.outcomes == {TARGET: case.loader.outcome}
    assert case.spec.loader is case.loader
    # It is not looked for, nor said, again.
    case.loader.exec_module(case.module)
    assert len(case.looked) == 1 and len(case.sentences) == 2


def test_a_module_of_another_package_without_a_copy_runs_without_a_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(ELSEWHERE, monkeypatch)
    case.copy = Refused("it is new")
    case.loader.exec_module(case.module)
    assert case.original.ran == [case.module] and case.sentences == []
    assert case.finder.outcomes == {} and case.spec.loader is case.original
    case.module.__spec__ = None
    case.loader.exec_module(case.module)


@pytest.mark.parametrize(
    ("text", "looked"),
    [
        (b"import selective_scan_cuda", True),
        (b"import causal_conv1d", True),
        (b"import triton", True),
        (b"class Mamba: mamba = 1", True),
        (b"class Other: pass", False),
    ],
)
def test_another_packages_text_is_looked_at_where_it_has_a_word_of_it(
    text: bytes, looked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(ELSEWHERE, monkeypatch, Runs(text=text))
    case.loader.exec_module(case.module)
    assert bool(case.looked) is looked and case.original.ran == [case.module]


@pytest.mark.parametrize("lacks", [{}, {"triton": "there is none"}])
def test_a_module_beside_the_targets_has_a_copy_where_it_lacks_a_language(
    lacks: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "own.py"
    file.write_text("ran = True\n")
    case = Case(BESIDE, monkeypatch, SourceFileLoader(BESIDE, str(file)))
    case.copy = a_copy()
    noted: list[Any] = []
    monkeypatch.setattr(kernel_packages, "lacking", lambda source, importing: lacks)
    monkeypatch.setattr(kernel_packages, "note", lambda *given: noted.append(given))
    case.loader.exec_module(case.module)
    if lacks:
        assert case.looked == [(BESIDE, case.original, lacks)] and noted == [(BESIDE, lacks)]
        assert case.of_copy.ran == [case.module] and case.finder.outcomes == {BESIDE: case.copy}
    else:
        assert case.looked == noted == [] and vars(case.module)["ran"]
        assert case.finder.outcomes == {} and case.spec.loader is case.original


LEFT = (
    ("the import of causal_conv1d on line 3", "nothing stands for it"),
    ("selective_scan_cuda in a string on line 4", "it is no import"),
    ("a way past", "it is another"),
)


def test_imports_that_a_copy_leaves_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(TARGET, monkeypatch)
    case.copy = a_copy(*LEFT)
    case.loader.exec_module(case.module)
    assert case.sentences == [
        f"the modified copy of {TARGET} leaves as it is: the import of causal_conv1d on line 3 "
        "(nothing stands for it); selective_scan_cuda in a string on line 4 (it is no import). "
        "What to do: write the import with the names that are used, or do without "
        "JETSON_MAMBA_STAND_IN=off."
    ]
    monkeypatch.setitem(sys.modules, "jetson_mamba.hook.unserved", None)
    monkeypatch.delattr("jetson_mamba.hook.unserved", raising=False)
    case.loader.exec_module(case.module)
    assert len(case.of_copy.ran) == 2 and len(case.sentences) == 1


@pytest.mark.parametrize("whole", [True, False])
def test_a_package_that_is_missing_is_explained(
    whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(TARGET, monkeypatch)
    explained: list[Any] = []
    monkeypatch.setattr(missing, "explain", explained.append)
    case.original.error = error = ModuleNotFoundError("No module named 'einops'", name="einops")
    if not whole:
        monkeypatch.setitem(sys.modules, "jetson_mamba.hook.missing", None)
        monkeypatch.delattr("jetson_mamba.hook.missing", raising=False)
    with pytest.raises(ModuleNotFoundError) as raised:
        case.loader.exec_module(case.module)
    assert raised.value is error and explained == [error] * whole


def test_a_loader_of_the_oldest_kind_loads_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(TARGET, monkeypatch, ByName())
    case.loader.exec_module(case.module)
    assert case.original.loaded == TARGET
    assert case.loader.create_module(case.spec) is None


def test_the_module_is_made_by_the_loader_that_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(TARGET, monkeypatch)
    assert case.loader.create_module(case.spec) is None
    made = ModuleType(TARGET)
    case.original.create_module = lambda spec: made if spec is case.spec else None
    assert case.loader.create_module(case.spec) is made


def test_what_else_is_asked_is_answered_by_the_loader_of_the_copy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = Case(TARGET, monkeypatch)
    case.copy = a_copy()
    vars(case.of_copy)["only_of_the_copy"] = 1
    for name in ("__wrapped__", "absent", "only_of_the_copy"):
        with pytest.raises(AttributeError, match=name):
            getattr(case.loader, name)
    assert case.looked == []
    assert case.loader.path == "/copy.py" and len(case.looked) == 1
    unmade = Loader.__new__(Loader)
    with pytest.raises(AttributeError, match="path"):
        unmade.path  # noqa: B018


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_a_module_that_is_joined_runs_and_is_joined_where_mamba_ssm_is(
    there: bool, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joined: list[Any] = []

    def join(module: ModuleType) -> None:
        joined.append((module, vars(module)["ran"]))
        if fails:
            raise OSError("half")

    mixers = ModuleType("jetson_mamba.ops.decoding.mixers")
    vars(mixers)["join"] = join
    decoding = ModuleType("jetson_mamba.ops.decoding")
    vars(decoding)["mixers"] = mixers
    for each in (ModuleType("jetson_mamba.ops"), decoding, mixers):
        monkeypatch.setitem(sys.modules, each.__name__, each)
    monkeypatch.delitem(sys.modules, "mamba_ssm", raising=False)
    if there:
        monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    file = tmp_path / "modeling.py"
    file.write_text("ran = True\n")
    original = SourceFileLoader("modeling", str(file))
    joining: Any = Joining(original)
    spec = ModuleSpec("modeling", joining, origin=str(file))
    module = ModuleType("modeling")
    module.__spec__, module.__loader__ = spec, joining
    assert joining.create_module(spec) is None
    joining.exec_module(module)
    assert spec.loader is module.__loader__ is original
    assert joined == [(module, True)] * there and vars(module)["ran"]
    module.__spec__ = None
    joining.exec_module(module)
    unmade = Joining.__new__(Joining)
    with pytest.raises(AttributeError, match="path"):
        unmade.path  # noqa: B018
