"""Tests in another project's checkout are run with the hook. They are counted as they end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).resolve().parent.parent.parent
THEIRS = """\
import pytest
import torch
from causal_conv1d import causal_conv1d_fn
from mamba_ssm.ops.selective_scan_interface import selective_scan_ref


@pytest.mark.parametrize("device", ["cuda", torch.device("cuda", 0)])
def test_on_a_gpu(device):
    x = torch.ones(1, 4, 6, device=device)
    torch.cuda.synchronize()
    out = causal_conv1d_fn(x.cuda(), torch.ones(4, 2, device=device))
    assert torch.equal(out[..., 1:], 2 * x[..., 1:])


def test_that_fails():
    assert selective_scan_ref is None


def test_of_what_only_a_gpu_has():
    raise RuntimeError("Found no NVIDIA driver on your system")
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="only a GPU that is not there is imitated")
def test_their_tests_run_on_a_cpu_as_far_as_they_can(tmp_path: Path) -> None:
    tests = tmp_path / "checkout" / "tests"
    tests.mkdir(parents=True)
    (tests / "test_small.py").write_text(THEIRS)
    # Nothing of Mamba-3 is run, and nothing that measures.
    (tests / "test_mamba3.py").write_text("raise RuntimeError")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.peers", "--release", "2.3.2.post1"),
            *("--mamba", str(tmp_path / "checkout")),
        ],
        cwd=REPOSITORY,
        env={**os.environ, "JETSON_MAMBA_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    shown = "2 passed, 1 failed, 1 skipped, 0 errors"
    assert f"checkout/tests/test_small.py: {shown}\nall: {shown}\n" in done.stdout
    assert "test_that_fails" in done.stdout
    assert done.returncode == 1
