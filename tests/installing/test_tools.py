"""What installs into an environment, for each kind of tool.

It is held to the commands that it takes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jetson_mamba import advice
from jetson_mamba.installing import tools
from jetson_mamba.installing.tools import Tool

PYTHON = "/opt/python3"
OWN = (PYTHON, "-m", "pip", "--disable-pip-version-check", "install")
PIP = Tool("pip", "24.0", ("pip", "install"))
UV = Tool("uv", "", ("uv", "pip", "install"))


@pytest.mark.parametrize(
    ("version", "tells"), [("20.0.2", False), ("22.1.2", False), ("22.2", True), ("24.0", True)]
)
def test_a_pip_can_be_asked_from_22_2_on_and_uv_always(version: str, tells: bool) -> None:
    assert Tool("pip", version, PIP.command).tells == tells
    assert UV.tells


def test_what_is_missing_comes_as_wheels_where_there_are_such() -> None:
    assert PIP.bring("einops", "torch==2.1") == (
        *("pip", "install", "--prefer-binary", "einops", "torch==2.1"),
    )
    assert UV.bring("einops", "torch==2.1") == ("uv", "pip", "install", "einops", "torch==2.1")


def test_the_question_is_of_what_would_be_installed_and_installs_nothing() -> None:
    assert PIP.ask("einops") == (
        *("pip", "install", "--prefer-binary", "--quiet", "--dry-run", "--report", "-", "einops"),
    )
    assert UV.ask("einops") == ("uv", "pip", "install", "--dry-run", "einops")


@pytest.mark.parametrize("requirement", ["mamba-ssm==2.2.4", "mamba-ssm>=2,<2.3", "mamba-ssm"])
def test_a_build_is_made_again_alone_and_of_nothing_that_was_kept(requirement: str) -> None:
    """What was kept may have been compiled for another torch, and what is there stays there."""
    alone = ("--no-build-isolation", "--no-deps")
    assert PIP.build(requirement) == (
        *("pip", "install", *alone, "--force-reinstall", "--no-cache-dir", requirement),
    )
    assert UV.build(requirement) == (
        *("uv", "pip", "install", *alone, "--reinstall-package", "mamba-ssm", "--no-cache"),
        requirement,
    )


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment with nothing that installs; the folder in which programs are found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("UV", raising=False)
    monkeypatch.setattr(advice, "has_pip", lambda: False)
    monkeypatch.setattr(advice, "brings_pip", lambda: False)
    return tmp_path


def program(folder: Path, name: str, says: str = "") -> str:
    """Put a program there that says something."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return str(path)


def test_where_nothing_installs_there_is_none(bare: Path) -> None:
    assert tools.tool(PYTHON) is None


def test_the_pip_that_python_brings_is_brought_first(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "brings_pip", lambda: True)
    monkeypatch.setattr(tools, "_bundled", lambda: "23.0.1")
    assert tools.tool(PYTHON) == Tool("pip", "23.0.1", OWN, (PYTHON, "-m", "ensurepip"))


@pytest.mark.parametrize("name", ["pip", "pip3"])
def test_a_pip_of_elsewhere_is_told_of_the_environment(
    name: str, bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "brings_pip", lambda: True)
    path = program(bare, name, "pip 22.3 from /usr/lib/python3/dist-packages/pip (python 3.10)")
    command = (path, "--python", PYTHON, "--disable-pip-version-check", "install")
    assert tools.tool(PYTHON) == Tool("pip", "22.3", command)


@pytest.mark.parametrize("says", ["pip 22.2.2 from /usr/lib (python 3.10)", "", "broken"])
def test_one_that_cannot_be_told_is_none(says: str, bare: Path) -> None:
    program(bare, "pip", says)
    assert tools.tool(PYTHON) is None


def test_a_pip_that_cannot_be_started_is_none(bare: Path) -> None:
    (bare / "pip").write_text("no program")
    (bare / "pip").chmod(0o755)
    assert tools.tool(PYTHON) is None


def test_uv_comes_before_every_pip_but_the_environments_own(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(bare, "pip3", "pip 24.0 from /usr/lib (python 3.10)")
    uv = program(bare, "uv")
    assert tools.tool(PYTHON) == Tool("uv", "", (uv, "pip", "install", "--python", PYTHON))
    # The one by which this was started, wherever it is.
    monkeypatch.setenv("UV", "/opt/uv")
    found = tools.tool(PYTHON)
    assert found is not None and found.command[0] == "/opt/uv"
    monkeypatch.setattr(advice, "has_pip", lambda: True)
    monkeypatch.setattr(advice, "version_of_pip", lambda: "24.0")
    assert tools.tool(PYTHON) == Tool("pip", "24.0", OWN)
    assert tools.tool() == Tool("pip", "24.0", (sys.executable, *OWN[1:]))


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('import x\n\n__version__ = "22.0.2"\n', "22.0.2"),
        ("__version__ = '20.0.2'\n", "20.0.2"),
        ("version = '20.0.2'\n", "0"),
        (None, "0"),
    ],
)
def test_the_version_of_pip_is_read_and_pip_not_imported(
    text: str | None, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that says none is taken for the oldest."""
    (tmp_path / "pip").mkdir()
    if text is not None:
        (tmp_path / "pip" / "__init__.py").write_text(text)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    before = sys.modules.get("pip")
    assert advice.version_of_pip() == version
    assert sys.modules.get("pip") is before


def test_the_pip_that_comes_with_python_has_a_version() -> None:
    import ensurepip

    assert tools._bundled() == ensurepip.version()
    assert os.path.exists(ensurepip.__file__)
