"""mamba_ssm's blocks are right with what is on their projections. They call it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.releases.test_blocks import python

LATEST = "2.3.2.post1"
# Other texts of the blocks: Mamba's first, and Mamba2's when its convolution knew no packs.
OLDER = {"1.0.1": ("called",), "2.1.0": ("called", "packed")}
CHECKS = ("called", "everywhere", "biases", "packed", "grouped", "decoded", "offloaded", "foreign")
# With conditions of their own.
MORE = ("quantised", "traced")
needs_operators = pytest.mark.skipif(
    not hasattr(torch.library, "register_autograd"), reason="operators need torch 2.4"
)


def found(version: str, cache: Path, *checks: str, **variables: Any) -> dict[str, float]:
    printed = python(
        version, cache, "-W", "ignore", "-m", "tests.modules.blocks", *checks, **variables
    )
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert {line[0].split()[0] for line in lines} == set(checks)
    return {name: float(number) for name, number in lines}


def wrong(numbers: dict[str, float], bound: float = 5e-5) -> dict[str, float]:
    return {name: each for name, each in numbers.items() if not each <= bound}


@pytest.fixture(scope="module")
def latest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    more = MORE if hasattr(torch.library, "register_autograd") else MORE[:1]
    return found(LATEST, tmp_path_factory.mktemp("modules"), *CHECKS, *more)


def of(check: str, numbers: dict[str, float]) -> dict[str, float]:
    return {name: each for name, each in numbers.items() if name.split()[0] == check}


@pytest.mark.parametrize("check", CHECKS)
def test_a_block_calls_what_is_on_its_projections(latest: dict[str, float], check: str) -> None:
    of_check = of(check, latest)
    assert wrong(of_check) == {}
    if check == "called":
        assert len(of_check) == 4 * (2 * 40 + 4 * 20 + 3 * 5)


@pytest.mark.parametrize("version", OLDER)
def test_a_block_of_an_older_release_calls_it_too(version: str, tmp_path: Path) -> None:
    assert wrong(found(version, tmp_path, *OLDER[version])) == {}


def test_a_block_is_quantised_dynamically(latest: dict[str, float]) -> None:
    # Eight bits are good for two digits.
    assert wrong(of("quantised", latest), 0.1) == {}


@needs_operators
def test_a_block_calls_them_in_a_graph(latest: dict[str, float]) -> None:
    assert wrong(of("traced", latest)) == {}
