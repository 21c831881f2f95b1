"""What programs launch of mamba-ssm is on a CPU what the kernels compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.releases.test_blocks import VERSIONS, python

LATEST = VERSIONS[-1]


def errors(version: str, cache: Path, *checks: str, **environment: Any) -> dict[str, float]:
    """The error of each result of some checks in ``tests.releases.launched``."""
    printed = python(
        version,
        cache,
        *("-W", "error::RuntimeWarning"),
        "-c",
        f"import jetson_mamba, sys; sys.argv = ['', {str(list(checks))[1:-1]}]; "
        "from tests.releases import launched; launched.main()",
        **environment,
    )
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert {name.split()[0] for name, _ in lines} == set(checks)
    return {name: float(error) for name, error in lines}


def too_large(found: dict[str, float]) -> dict[str, float]:
    return {name: error for name, error in found.items() if not error <= 2e-5}


@pytest.mark.parametrize("version", ["2.0.3", *VERSIONS])
def test_what_programs_launch_runs_where_no_triton_does(version: str, tmp_path: Path) -> None:
    assert too_large(errors(version, tmp_path, "parts", "combined", "norms", "attention")) == {}


def test_it_is_what_upstreams_kernels_compute(tmp_path: Path) -> None:
    found = errors(LATEST, tmp_path, "parts", "norms", TRITON_INTERPRET="1")
    assert too_large(found) == {}


def test_mamba_3_is_exact_on_a_cpu(tmp_path: Path) -> None:
    assert too_large(errors(LATEST, tmp_path, "mamba3", "mamba3_model")) == {}
