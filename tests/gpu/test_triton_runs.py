"""A first small kernel on a GPU says whether Triton works.

A Triton without a compiler is told by it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

PROGRAM = """
import warnings, torch
from jetson_mamba.ops.ssd import triton_runs_on
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    print(triton_runs_on(torch.device("cuda", 0)), triton_runs_on(torch.device("cuda", 0)))
print(*(each.message for each in said))
"""


@pytest.mark.parametrize("works", [True, False])
def test_a_first_launch_says_whether_triton_runs(works: bool, tmp_path: Path) -> None:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path)}
    if not works:
        # A compiler that fails, of which ptxas is one.
        environment["CC"] = environment["TRITON_PTXAS_PATH"] = "/bin/false"
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == f"{works} {works}"
    assert ("Triton launches nothing on cuda:0" in printed[1]) == (not works)
