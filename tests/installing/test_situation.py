"""Whether this Python's packages are the system's, in whose words pip refuses to add to them."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from jetson_mamba import advice
from jetson_mamba.installing import situation
from jetson_mamba.installing.situation import Torch
from jetson_mamba.report import trial
from jetson_mamba.report.installed import Distribution


@pytest.fixture
def systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that says so, for a Python that is none of an environment."""
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.delenv("PIP_BREAK_SYSTEM_PACKAGES", raising=False)
    paths = {"stdlib": str(tmp_path)}
    monkeypatch.setattr(sysconfig, "get_path", paths.__getitem__)
    file = tmp_path / "EXTERNALLY-MANAGED"
    file.touch()
    return file


def test_a_file_says_so_where_python_is_the_systems_own(
    systems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert advice.managed() == str(systems)
    monkeypatch.setattr(sys, "prefix", "/an/environment")
    assert advice.managed() is None
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    systems.unlink()
    assert advice.managed() is None


@pytest.mark.parametrize("said", ["1", "true", "True", "yes", "on", "0", "", "no", "false", "2"])
def test_whoever_tells_pip_to_do_it_all_the_same_is_not_kept_from_it(
    said: str, systems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_BREAK_SYSTEM_PACKAGES", said)
    allowed = said.lower() in ("1", "true", "yes", "on")
    assert advice.managed() == (None if allowed else str(systems))


def torch_that(does: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, object]:
    """What is found of a torch whose module does that."""
    (folder / "torch.py").write_text(does)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return situation._told([])


def test_what_torch_says_is_found_among_what_else_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that it loads may print at its start or at its end."""
    noisy = """
import atexit, types
print("told you so"[5:])
atexit.register(print, "bye")
__version__ = "2.8.0"
version = types.SimpleNamespace(cuda="12.6")
cuda = types.SimpleNamespace(is_available=lambda: True)
"""
    assert torch_that(noisy, tmp_path, monkeypatch) == (["2.8.0", "12.6", True], None)


def test_a_torch_that_waits_for_something_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "SECONDS", 0.5)
    found, error = torch_that("import time; time.sleep(60)", tmp_path, monkeypatch)
    assert found is None and str(error).startswith(trial.NO_ANSWER)


def test_what_is_asked_after_is_called_as_pip_calls_it() -> None:
    for module, name in situation.ASKED.items():
        assert module.isidentifier() and name == module.replace("_", "-")
    assert {"huggingface-hub", "mamba-ssm", "torch"} - {*situation.ASKED.values()} == {"torch"}


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("told", [["2.9.0", "12.6", True], None])
def test_a_torch_is_what_is_on_record_else_what_it_says(
    there: bool, recorded: bool, told: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Distribution("torch", "2.8.0", (), "/site", ("triton==3.4.0",))
    known = [record] if recorded else []
    module = "jetson_mamba.report.installed"
    monkeypatch.setattr(f"{module}.find", lambda name, path: "a spec" if there else None)
    monkeypatch.setattr(f"{module}.distributions", lambda name, path: known)
    monkeypatch.setattr(situation, "_told", lambda path: (told, None if told else "it fails"))
    found = situation._torch(["/site"])
    if not there:
        assert found is None
        return
    assert found == Torch(
        version="2.8.0" if recorded else "2.9.0" if told else "",
        recorded=recorded,
        cuda="12.6" if told else None,
        gpu=bool(told),
        triton="3.4.0" if recorded else None,
        error=None if told else "it fails",
    )
