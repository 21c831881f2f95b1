"""What the doctor advises can be had by the Python that is there."""

from __future__ import annotations

import shlex
import sys

import pytest

from jetson_mamba.installing.plan import plan
from jetson_mamba.installing.situation import Situation, Torch
from jetson_mamba.installing.tools import tool
from jetson_mamba.report.findings import commands
from jetson_mamba.report.findings.extensions import RELEASE_FOR_PARAMETERS


@pytest.mark.parametrize("specifier", [">=2.3.0", ">=2.1.0", *RELEASE_FOR_PARAMETERS.values()])
@pytest.mark.parametrize("python", [(3, minor) for minor in range(8, 16)], ids=str)
def test_a_release_is_advised_only_where_the_installer_takes_it(
    python: tuple[int, int], specifier: str
) -> None:
    """JetPack 5's Python has none from 2.2.3 on, and the installer says so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "version_info", (*python, 0, "final", 0))
        command = commands.release(specifier)
    if not command:
        assert python < (3, 9) and specifier not in ("", ">=2.1.0")
        return
    here = Situation(python, "aarch64", Torch("2.4.0"), {}, tool())
    (requirement,) = shlex.split(command)[2:]
    assert plan(here, requirement).mamba is not None


@pytest.mark.parametrize(
    ("pip", "command"),
    [
        ("python3 -m pip", "python3 -m pip uninstall --yes causal-conv1d"),
        ("uv pip", "uv pip uninstall causal-conv1d"),
    ],
)
def test_what_is_taken_away_asks_nothing(
    pip: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jetson_mamba.advice.pip", lambda: pip)
    assert commands.uninstall("causal-conv1d") == command
