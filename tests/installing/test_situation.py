"""Whether this Python's packages are the system's, in whose words pip refuses to add to them."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import pytest

from jetson_mamba import advice
from jetson_mamba.installing import situation


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


def test_what_is_asked_after_is_called_as_pip_calls_it() -> None:
    for module, name in situation.ASKED.items():
        assert module.isidentifier() and name == module.replace("_", "-")
    assert {"huggingface-hub", "mamba-ssm", "torch"} - {*situation.ASKED.values()} == {"torch"}
