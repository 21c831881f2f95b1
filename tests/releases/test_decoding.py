"""Real releases of mamba-ssm generate token by token on a CPU, with nothing compiled.

What they generate is what greedy decoding by whole sequences gives, and a step by the op is a
step by upstream's kernel.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.releases.test_blocks import python

VERSIONS = ("2.2.4", "2.3.2.post1")


def decoding(version: str, cache: Path, *checks: str, **environment: Any) -> dict[str, float]:
    """The error of each result of some checks in ``tests.releases.decoding``."""
    arguments = ("-W", "ignore", "-m", "tests.releases.decoding", *checks)
    printed = python(version, cache, *arguments, **environment)
    lines = [line.split() for line in printed.splitlines() if not line.startswith("Prompt")]
    assert {line[0] for line in lines} == set(checks)
    return {f"{check} {result}": float(error) for check, result, error in lines}


@pytest.mark.parametrize(
    ("version", "layers"),
    [("1.1.4", ("mamba1",)), *((version, ("mamba1", "mamba2")) for version in VERSIONS)],
)
def test_a_greedy_generation_is_that_of_whole_sequences(
    version: str, layers: tuple[str, ...], tmp_path: Path
) -> None:
    errors = decoding(version, tmp_path, *layers)
    assert len(errors) == 2 * len(layers)
    for name, error in errors.items():
        assert error <= (0.0 if name.endswith("tokens") else 1e-5), name


def test_a_step_and_its_padding_are_those_of_upstreams_triton_kernel(tmp_path: Path) -> None:
    checks = ("on_triton", "padded_on_triton")
    errors = decoding("2.3.2.post1", tmp_path, *checks, TRITON_INTERPRET="1")
    assert len(errors) == 14
    assert {name: error for name, error in errors.items() if not error <= 1e-6} == {}


@pytest.mark.parametrize("version", VERSIONS)
def test_the_function_and_its_reference_are_found_as_upstreams_are(
    version: str, tmp_path: Path
) -> None:
    errors = decoding(version, tmp_path, "module")
    assert {name: error for name, error in errors.items() if not error <= 1e-6} == {}
