"""The Mamba block of real releases is one graph that equals its eager calls."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.interpreters import COMPILER
from tests.releases.test_blocks import python

pytestmark = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"), reason="operators need torch 2.4"
)


def differences(version: str, cache: Path, *checks: str) -> dict[str, float]:
    arguments = ("-W", "ignore", "-m", "tests.compile.mamba", *checks)
    printed = python(version, cache, *arguments, modules=COMPILER)
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert {line[0].split()[0] for line in lines} == set(checks)
    return {name: float(difference) for name, difference in lines}


@pytest.mark.parametrize("version", ["1.2.0", "2.2.4"])
def test_a_block_compiles_whole_forward_and_backward(version: str, tmp_path: Path) -> None:
    found = differences(version, tmp_path, "traced_once", "fork")
    assert {name: each for name, each in found.items() if not each <= 1e-5} == {}


def test_a_block_compiles_with_symbolic_sizes_and_under_autocast(tmp_path: Path) -> None:
    checks = ("traced", "symbolic", "breaks", "exported", "autocast")
    found = differences("2.3.2.post1", tmp_path, *checks)
    assert found.pop("breaks graph breaks") == 0
    for name, difference in found.items():
        assert difference <= (2e-2 if name.startswith("autocast") else 1e-5), name


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_a_block_compiles_with_inductor(tmp_path: Path) -> None:
    found = differences("2.3.2.post1", tmp_path, "inductor")
    assert {name: each for name, each in found.items() if not each <= 1e-5} == {}
