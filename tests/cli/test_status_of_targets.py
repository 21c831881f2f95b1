"""What ``status`` says of a target in each state that it can be in, field by field."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from jetson_mamba.errors import LeftOut as Left
from jetson_mamba.errors import Refused
from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import snapshot
from jetson_mamba.hook.copies import ModifiedCopy
from jetson_mamba.hook.loader import Loader
from jetson_mamba.report import status as report
from jetson_mamba.report.status import LeftOut, Target

NAME = TARGETS[0]
COPY = ModifiedCopy(NAME, "/s.py", "/copy.py", "made", 7, b"", (Left("a way past", "unknown"),))
OF_A_COPY = ("made", "/copy.py", 7, None, (LeftOut("a way past", "unknown"),))


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the installed package is said to be; nothing of it is imported."""
    package = tmp_path / "mamba_ssm"
    found = SimpleNamespace(submodule_search_locations=[str(package), "/elsewhere"])
    monkeypatch.setattr(report, "find_spec", lambda name: found if name == "mamba_ssm" else None)
    for name in [each for each in sys.modules if each.partition(".")[0] == "mamba_ssm"]:
        monkeypatch.delitem(sys.modules, name)
    return package


def ahead(name: str = NAME) -> Target:
    (found,) = (each for each in report.status(look_ahead=True).targets if each.name == name)
    return found


@pytest.mark.parametrize("outcome", [COPY, None, Refused("no"), ImportError("gone"), OSError("x")])
def test_what_an_import_would_give_is_looked_up_in_the_file(
    outcome: Any, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = package / "ops" / "selective_scan_interface.py"
    path.parent.mkdir(parents=True)
    path.touch()

    def find(target: str, loader: SourceFileLoader) -> Any:
        assert (target, loader.name, loader.path) == (NAME, NAME, str(path))
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr("jetson_mamba.hook.copies.find", find)
    if outcome is COPY:
        assert ahead() == Target(NAME, "not imported", *OF_A_COPY)
    else:
        reason = "it needs no change" if outcome is None else str(outcome)
        assert ahead() == Target(NAME, "not imported", None, str(path), 0, reason)
    other = TARGETS[1]
    reason = "this release does not have it"
    assert ahead(other) == Target(other, "not imported", None, None, 0, reason)


@pytest.mark.parametrize(
    "spec", [None, SimpleNamespace(submodule_search_locations=None)], ids=["none", "a module"]
)
def test_without_the_package_there_is_no_target(
    spec: Any, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "find_spec", lambda name: spec)
    assert ahead() == Target(NAME, "not imported", None, None, 0, "mamba_ssm is not installed")
    (now,) = (each for each in report.status().targets if each.name == NAME)
    assert now == Target(NAME, "not imported", None, None, 0, None)


class Foreign:
    """A loader of somebody else's."""


@pytest.mark.parametrize(
    ("outcome", "remembered", "reason"),
    [
        ("it is none of ours", None, "it is none of ours"),
        ("it is none of ours", "said before", "it is none of ours"),
        (None, "said before", "said before"),
        (None, COPY, "it was imported while jetson_mamba was not active"),
        (None, None, "it was imported while jetson_mamba was not active"),
    ],
)
@pytest.mark.parametrize("file", ["/s.py", None, 3])
def test_why_upstreams_own_runs_is_what_is_known_of_it(
    outcome: str | None,
    remembered: Any,
    reason: str,
    file: Any,
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader: Any = Foreign()
    if outcome is not None:
        loader = Loader.__new__(Loader)
        loader.outcome = outcome
    module = ModuleType(NAME)
    module.__spec__ = ModuleSpec(NAME, loader, origin="/s.py")
    vars(module)["__file__"] = file
    monkeypatch.setitem(sys.modules, NAME, module)
    hook = snapshot.hook()._replace(outcomes={NAME: remembered})
    monkeypatch.setattr(report, "hook", lambda: hook)
    path = file if isinstance(file, str) else None
    assert ahead() == Target(NAME, "original", None, path, 0, reason)


def test_what_is_no_module_of_a_file_is_told_as_that(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, NAME, ModuleType(NAME))
    reason = "what is imported under its name is no module of a file"
    assert ahead() == Target(NAME, "original", None, None, 0, reason)


def test_a_target_that_runs_and_its_like_of_another_package_tell_their_copy(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "vim.selective_scan_interface"
    for name, outcome in ((NAME, COPY), (other, COPY), ("vim.b", "it needs no change")):
        loader: Any = Loader.__new__(Loader)
        loader.outcome = outcome
        module = ModuleType(name)
        module.__spec__ = ModuleSpec(name, loader, origin="/s.py")
        monkeypatch.setitem(sys.modules, name, module)
    assert ahead() == Target(NAME, "modified", *OF_A_COPY)
    named = [each for each in report.status().targets if each.name not in TARGETS]
    assert named == [Target(other, "modified", *OF_A_COPY)]


class Case(NamedTuple):
    """What decides the backend of an op."""

    device: torch.device
    dtype: torch.dtype
    width: int


def test_what_decides_a_case_is_told_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(torch.device("cpu"), torch.bfloat16, 3)
    choice = SimpleNamespace(backend="pytorch", passed_over=[("cuda", "no GPU")])

    class Op:
        name = "scan"

        def choices(self) -> Any:
            return {case: choice}

    op = Op()
    holding = ModuleType("jetson_mamba.ops.of_a_test")
    beside = ModuleType("jetson_mamba.of_a_test")
    vars(holding).update(first=op, second=op, third=Op(), other=3)
    vars(beside).update(op=Op())
    for module in (holding, beside):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(
        sys.modules,
        "jetson_mamba.dispatch.backends",
        SimpleNamespace(Op=Op),
    )
    found, again = report.status().backends
    assert found == again
    assert (found.op, found.backend) == ("scan", "pytorch")
    assert found.case == {"device": "cpu", "dtype": "bfloat16", "width": "3"}
    assert found.passed_over == (report.PassedOver("cuda", "no GPU"),)
    for name in ("backends", "selection"):
        monkeypatch.delitem(sys.modules, f"jetson_mamba.dispatch.{name}", raising=False)
    now = report.status()
    assert now.backends == () and now.selections == ()


def test_what_names_a_backend_is_told_in_the_order_of_the_ops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def named(backend: str) -> Any:
        return SimpleNamespace(selection=SimpleNamespace(backend=backend, asked_by="it"))

    ops = {"b": named("cuda"), "a": named("pytorch"), "c": SimpleNamespace(selection=None)}
    name = "jetson_mamba.dispatch.selection"
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(OPS=ops))
    told = report._selections()
    assert told == (report.Selected("a", "pytorch", "it"), report.Selected("b", "cuda", "it"))


@pytest.mark.parametrize(("said", "told"), [("cuda", "cuda"), ("", None), (None, None)])
def test_what_the_variable_says_is_told(
    said: str | None, told: str | None, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JETSON_MAMBA_BACKEND", raising=False)
    if said is not None:
        monkeypatch.setenv("JETSON_MAMBA_BACKEND", said)
    assert report.status().backend_variable == told
