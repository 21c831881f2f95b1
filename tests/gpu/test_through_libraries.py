"""Blocks on a GPU where neither cuda-core nor cuda-bindings can be imported, as on JetPack 5."""

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
import json, sys
sys.modules["cuda.core"] = sys.modules["cuda.bindings.nvrtc"] = None
import torch
import jetson_mamba
torch.set_default_device("cuda")
torch.manual_seed(0)
from jetson_mamba.kernels import compiler, through_libraries
from tests.releases import compare
compare.D_MODEL, compare.SEQLEN = 64, 133
errors = {name: dict(compare.CHECKS[name]()) for name in ("mamba", "mamba_inner", "mamba2")}
ways = [each is through_libraries for each in (compiler._driver(), compiler._nvrtc())]
x = torch.randn(2, 33, 64)
block = __import__("mamba_ssm").Mamba(64)
graph = torch.cuda.CUDAGraph()
with torch.no_grad():
    expected = block(x)
    with torch.cuda.graph(graph):
        out = block(x)
    graph.replay()
errors["captured"] = {"out": float((out - expected).abs().max())}
backends = {each.op: each.backend for each in jetson_mamba.status().backends}
print(json.dumps([errors, ways, backends]))
"""


def test_blocks_agree_with_float64_without_nvidias_packages(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM],
        env={
            **os.environ,
            "JETSON_MAMBA_BACKEND": "causal_conv1d=cuda,selective_scan=cuda,ssd=cuda",
            "PYTHONPATH": os.pathsep.join((str(release_path("2.3.2.post1")), str(REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    errors, ways, backends = json.loads(done.stdout.splitlines()[-1])
    print(errors, backends)
    assert ways == [True, True]
    assert list(tmp_path.rglob("*.cubin"))
    for name, tolerance in (("mamba", 1e-5), ("mamba_inner", 1e-5), ("mamba2", 1e-3)):
        wrong = {result: error for result, error in errors[name].items() if not error <= tolerance}
        assert wrong == {}, name
    assert errors["captured"]["out"] == 0
