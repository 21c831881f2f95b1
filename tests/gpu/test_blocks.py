"""Whole blocks of a real release on a GPU, with nothing compiled, against float64."""

from __future__ import annotations

import json
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

PROGRAM = """
import json, sys, warnings
import torch
import jetson_mamba
torch.set_default_device("cuda")
torch.manual_seed(0)
from tests.releases import compare
compare.D_MODEL, compare.SEQLEN = 64, 133
errors = {name: dict(compare.CHECKS[name]()) for name in ("mamba", "mamba_inner", "mamba2")}
backends = {each.op: each.backend for each in jetson_mamba.status().backends}
print(json.dumps([errors, backends]))
"""


@pytest.mark.parametrize("version", ["2.2.4", "2.3.2.post1"])
def test_blocks_agree_with_float64_on_a_gpu(version: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                (str(release_path(version)), str(REPOSITORY), os.environ.get("PYTHONPATH", ""))
            ),
            "JETSON_MAMBA_CACHE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    errors, backends = json.loads(done.stdout.splitlines()[-1])
    print(errors, backends)
    for name, tolerance in (("mamba", 1e-5), ("mamba_inner", 1e-5), ("mamba2", 1e-5)):
        wrong = {result: error for result, error in errors[name].items() if not error <= tolerance}
        assert wrong == {}, name
