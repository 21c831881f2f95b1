"""Mamba-2 of real releases is one graph that equals its eager calls.

So is the language model, in its default configuration; and so are calls without gradients, which
take a path of their own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests.interpreters import COMPILER
from tests.releases.test_blocks import python

LATEST = "2.3.2.post1"
needs_operators = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"), reason="operators need torch 2.4"
)


def differences(version: str, cache: Path, *checks: str) -> dict[str, float]:
    arguments = ("-W", "ignore", "-m", "tests.compile.mamba2", *checks)
    printed = python(version, cache, *arguments, modules=COMPILER)
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert {line[0].split()[0] for line in lines} == set(checks)
    return {name: float(difference) for name, difference in lines}


def beyond(found: dict[str, float], bound: float) -> dict[str, float]:
    return {name: each for name, each in found.items() if not each <= bound}


@needs_operators
def test_a_block_and_a_model_compile_whole_forward_and_backward(tmp_path: Path) -> None:
    checks = ("traced_block", "traced_model", "traced_model_of_mamba", "breaks")
    found = differences(LATEST, tmp_path, *checks)
    assert {found.pop(f"breaks {name}") for name in ("block", "model", "model of Mamba")} == {0}
    assert beyond(found, 1e-5) == {}


@needs_operators
def test_a_model_of_an_older_release_compiles_whole(tmp_path: Path) -> None:
    assert beyond(differences("2.2.4", tmp_path, "traced_layer"), 1e-5) == {}


@needs_operators
def test_every_form_of_a_block_compiles_whole_and_is_exported(tmp_path: Path) -> None:
    checks = ("symbolic_block", "mlp_block", "parts_of_block", "exported", "autocast_block")
    found = differences(LATEST, tmp_path, *checks)
    rounded = {name: each for name, each in found.items() if name.startswith("autocast_block ")}
    assert rounded and beyond(rounded, 2e-2) == {}
    assert beyond({name: found[name] for name in found.keys() - rounded.keys()}, 1e-5) == {}


@needs_operators
def test_a_block_compiles_with_its_core_in_one_operator(tmp_path: Path) -> None:
    found = differences(LATEST, tmp_path, "core_of_block")
    assert len(found) == 3 * 11
    for name, difference in found.items():
        assert difference <= (2e-2 if "autocast" in name else 1e-5), name


@needs_operators
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_a_model_compiles_with_inductor(tmp_path: Path) -> None:
    assert beyond(differences(LATEST, tmp_path, "inductor_model"), 1e-5) == {}


def test_the_default_model_runs_on_a_cpu_with_gradients_and_without(tmp_path: Path) -> None:
    found = differences(LATEST, tmp_path, "double", "inference")
    assert beyond(found, 1e-5) == {}
    without = {name: each for name, each in found.items() if name.startswith("inference ")}
    assert len(without) == 16
    assert beyond(without, 1e-6) == {}
