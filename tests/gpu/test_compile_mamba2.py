"""Mamba-2 of a real release on a GPU: compiled, exported, captured, and without gradients."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


def differences(cache: Path, *checks: str) -> dict[str, float]:
    path = (str(release_path("2.3.2.post1")), str(REPOSITORY), os.environ.get("PYTHONPATH", ""))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.gpu.mamba2", *checks],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path),
            "JETSON_MAMBA_CACHE": str(cache),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=580,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    assert {line[0].split()[0] for line in lines} == set(checks)
    return {name: float(difference) for name, difference in lines}


def beyond(found: dict[str, float], bound: float) -> dict[str, float]:
    return {name: each for name, each in found.items() if not each <= bound}


def test_the_inference_path_gives_what_the_autograd_function_gives(tmp_path: Path) -> None:
    """By the same kernels on the same grids, or by this project's, whose results are rounded alike.

    A gated MLP is PyTorch's, in bfloat16.
    """
    found = differences(tmp_path, "inference", "captured")
    assert len(found) == 62
    same = {name: each for name, each in found.items() if "launches" in name and "MLP" not in name}
    assert beyond(same, 1e-3) == {}
    assert beyond(found, 1e-2) == {}


def test_a_block_and_a_model_compile_whole_forward_and_backward(tmp_path: Path) -> None:
    """On the same kernels on both sides."""
    checks = ("traced_block", "traced_model_of_mamba", "inductor_model", "exported", "breaks")
    found = differences(tmp_path, *checks)
    assert {found.pop(f"breaks {name}") for name in ("block", "model", "model of Mamba")} == {0}
    assert beyond(found, 5e-3) == {}


def test_a_block_compiles_under_autocast(tmp_path: Path) -> None:
    assert beyond(differences(tmp_path, "autocast_block"), 3e-2) == {}


def test_a_block_and_a_model_compile_with_cuda_graphs(tmp_path: Path) -> None:
    assert beyond(differences(tmp_path, "reduce_overhead"), 2e-2) == {}
