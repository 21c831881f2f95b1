"""What else of mamba-ssm launches Triton is on a CPU what the kernels compute."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.releases.test_blocks import VERSIONS, python

ON_CPU = ("activations", "norms", "falcon", "second_derivatives", "hybrid")
ON_TRITON = ("activations", "norms", "second_derivatives")


def errors(version: str, cache: Path, *checks: str, **environment: Any) -> dict[str, float]:
    """The error of each result of some checks in ``tests.releases.past_targets``."""
    printed = python(
        version,
        cache,
        "-c",
        f"import jetson_mamba, sys; sys.argv = ['', {str(list(checks))[1:-1]}]; "
        "from tests.releases import past_targets; past_targets.main()",
        **environment,
    )
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert {name.split()[0] for name, _ in lines} == set(checks)
    return {name: float(error) for name, error in lines}


def too_large(found: dict[str, float]) -> dict[str, float]:
    return {
        name: error
        for name, error in found.items()
        if not error <= (1e-2 if "bfloat16" in name else 1e-5)
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_what_launches_triton_runs_where_there_is_none(version: str, tmp_path: Path) -> None:
    assert too_large(errors(version, tmp_path, *ON_CPU)) == {}


def test_the_ops_are_what_upstreams_kernels_compute(tmp_path: Path) -> None:
    assert too_large(errors(VERSIONS[-1], tmp_path, *ON_TRITON, TRITON_INTERPRET="1")) == {}
