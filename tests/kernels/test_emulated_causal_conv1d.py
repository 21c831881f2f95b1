"""The kernels of the convolution agree on a CPU with float64.

All that surrounds them runs with them. Each layout has kernels of its own, and whatever is not
aligned takes their general form.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jetson_mamba.ops.causal_conv1d import cuda, op
from tests.kernels.emulated import emulate, serve
from tests.ops.conv1d_setups import Options, Setup, check, fresh_op, name

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
FLOAT, BRAIN = torch.float32, torch.bfloat16


@pytest.fixture(autouse=True)
def on_the_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, libraries)
    serve(monkeypatch, cuda)
    monkeypatch.setattr(op, "OP", fresh_op("cuda"))


STATEFUL: dict[str, Any] = {"initial_states": True, "final_states": True, "dim": 8}


@pytest.mark.parametrize(
    "setup",
    [
        Setup(FLOAT, "time", Options(dim=3, seqlen=140)),
        Setup(FLOAT, "time slice", Options(dim=3, seqlen=11)),
        Setup(FLOAT, "channels", Options(dim=64, seqlen=40)),
        Setup(FLOAT, "general", Options(dim=5)),
        Setup(BRAIN, "time", Options(width=2, dim=2, seqlen=16, sequences="padding")),
        Setup(BRAIN, "channels", Options(seqlen=5, **STATEFUL)),
        Setup(FLOAT, "time", Options(seqlen=2, **STATEFUL)),
    ],
    ids=name,
)
def test_both_passes_agree_with_float64(setup: Setup) -> None:
    check(setup, torch.device("cpu"))
    (choice,) = op.OP.choices().values()
    assert choice.backend == "cuda"
