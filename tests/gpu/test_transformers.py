"""transformers' Mamba models on a GPU, by their fast path, with nothing compiled beforehand.

The reference is their slow path on the CPU, in float32.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.releases.test_transformers import errors, transformers_models
from tools.releases import release_path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]

COMPUTED = ("training", "evaluated", "continued", "decoded")
# Mamba-2 runs on upstream's Triton kernels here, whose products are in TF32.
TOLERANCES = {"Mamba": 1e-5, "Mamba2": 5e-3}


def test_both_models_train_and_decode_as_on_their_slow_path(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    path = (release_path("2.3.2.post1"),)
    fast = transformers_models(tmp_path / "fast", *COMPUTED, device="cuda", path=path)
    slow = transformers_models(tmp_path / "slow", *COMPUTED, path=path, JETSON_MAMBA="off")
    wrong = {}
    for what in slow.computed:
        name = what.partition(" ")[0]
        found = errors(fast, slow, what)
        print(what, fast.calls[what], found)
        assert fast.calls[what].get("causal_conv1d"), what
        wrong.update(
            {
                f"{what}: {result}": error
                for result, error in found.items()
                if not error <= TOLERANCES[name]
            }
        )
    assert wrong == {}
