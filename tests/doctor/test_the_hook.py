"""What the hook would do with each target of an installed mamba_ssm."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from jetson_mamba.errors import LeftOut as Left
from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies, snapshot
from jetson_mamba.hook.copies import ModifiedCopy
from jetson_mamba.hook.loader import Loader
from jetson_mamba.report import hook
from jetson_mamba.report.status import LeftOut, Target
from jetson_mamba.rewrite import Refused
from jetson_mamba.startup.files import StartupFile


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Refused("its text is not known"), "its text is not known"),
        (ImportError("no edits.py"), f"{hook.NOT_WHOLE} (no edits.py)"),
        (OSError("cannot be read"), f"{hook.NOT_WHOLE} (cannot be read)"),
    ],
)
def test_a_target_that_stays_upstreams_own_is_told_with_the_reason(
    error: Exception, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str, loader: Any) -> Any:
        if name == TARGETS[0]:
            raise error

    monkeypatch.setattr(copies, "find", find)
    for name in TARGETS[:2]:
        path = tmp_path / Path(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    found = hook.hook(str(tmp_path / "mamba_ssm"))
    assert found.refused == {TARGETS[0]: reason}
    of = {target.name: target for target in found.targets}
    assert list(of) == list(TARGETS)
    assert of[TARGETS[0]].reason == reason
    assert of[TARGETS[1]].reason == "it needs no change"
    assert of[TARGETS[2]].reason == "this mamba_ssm does not have it"
    assert {target.state for target in found.targets} == {"not imported"}


def test_without_a_mamba_ssm_there_are_no_targets() -> None:
    found = hook.hook(None)
    assert (found.targets, found.refused, found.taken_by) == ((), {}, None)


COPY = ModifiedCopy(TARGETS[1], "/s.py", "/c.py", "made", 3, b"", (Left("a way past", "it"),))


def test_a_target_tells_its_file_or_the_copy_that_would_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    def find(name: str, loader: Any) -> Any:
        given.append((name, loader.name, loader.path))
        if name == TARGETS[0]:
            raise Refused("its text is not known")
        return COPY if name == TARGETS[1] else None

    monkeypatch.setattr(copies, "find", find)
    paths = []
    for name in TARGETS[:3]:
        path = tmp_path / Path(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        paths.append(str(path))
    first, second, third, fourth, *_ = hook.hook(str(tmp_path / "mamba_ssm")).targets
    absent = "not imported"
    assert first == Target(TARGETS[0], absent, None, paths[0], 0, "its text is not known")
    left_out = (LeftOut("a way past", "it"),)
    assert second == Target(TARGETS[1], absent, "made", "/c.py", 3, None, left_out)
    assert third == Target(TARGETS[2], absent, None, paths[2], 0, "it needs no change")
    reason = "this mamba_ssm does not have it"
    assert fourth == Target(TARGETS[3], absent, None, None, 0, reason)
    assert given == [(name, name, path) for name, path in zip(TARGETS, paths)]


class Takes:
    """A finder that has what it is asked for."""

    asked: ClassVar[list[Any]] = []

    def find_spec(self, *given: Any) -> Any:
        """A spec of it."""
        self.asked.append(given)
        return ModuleSpec(given[0], None)


class Refuses:
    """A finder that has nothing."""

    @staticmethod
    def find_spec(*given: Any) -> Any:
        """No spec."""


class Fails:
    """A finder that is broken."""

    def find_spec(self, *given: Any) -> Any:
        """Raise."""
        raise OSError("no disk")


class Older:
    """A finder of the kind that there was before Python 3.4."""


@pytest.mark.parametrize(
    ("finders", "taken"),
    [
        ((), None),
        ((Refuses, Older()), None),
        ((Refuses, Takes(), Fails()), "Takes"),
        ((Fails(), Takes()), "Fails, which raises OSError: no disk"),
    ],
)
def test_a_finder_that_is_asked_before_and_takes_a_target_is_named(
    finders: tuple[Any, ...], taken: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Takes.asked.clear()
    found = snapshot.hook()._replace(before=finders)
    monkeypatch.setattr(snapshot, "hook", lambda: found)
    package = tmp_path / "mamba_ssm"
    assert hook.hook(str(package)).taken_by == (taken and f"{__name__}.{taken}")
    assert hook.hook(None).taken_by is None
    expected = (TARGETS[0], [str(package / "ops")], None)
    assert Takes.asked == [expected] * (taken == "Takes")


@pytest.mark.parametrize(
    ("by", "active"), [("startup file", True), ("import", False), (None, False)]
)
@pytest.mark.parametrize(("said", "mode"), [(None, "on"), ("", "on"), ("strict", "strict")])
def test_the_hook_is_active_where_a_startup_file_makes_it(
    by: str | None, active: bool, said: str | None, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [StartupFile("/site/a.pth", True)]
    monkeypatch.delenv("JETSON_MAMBA", raising=False)
    if said is not None:
        monkeypatch.setenv("JETSON_MAMBA", said)
    monkeypatch.setattr("jetson_mamba.startup.files.installed", lambda: iter(files))
    state = snapshot.hook()._replace(activated_by=by)
    monkeypatch.setattr(snapshot, "hook", lambda: state)
    monkeypatch.setattr(sys, "meta_path", [Refuses, Takes(), *sys.meta_path])
    found = hook.hook(None)
    assert (found.active, found.mode) == (active, mode)
    assert found.startup_files == tuple(files)
    assert found.finders[:2] == (f"{__name__}.Refuses", f"{__name__}.Takes")
    assert len(found.finders) == len(sys.meta_path)


def test_a_target_that_was_there_before_the_hook_is_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in TARGETS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert hook.hook(None).too_late == ()
    loader: Any = Loader.__new__(Loader)
    loader.outcome = COPY
    served = ModuleType(TARGETS[0])
    served.__spec__ = ModuleSpec(TARGETS[0], loader)
    monkeypatch.setitem(sys.modules, TARGETS[0], served)
    monkeypatch.setitem(sys.modules, TARGETS[2], ModuleType(TARGETS[2]))
    assert hook.hook(None).too_late == (TARGETS[2],)
