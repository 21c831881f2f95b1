"""Tokens one after another are those of whole passes, on a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.releases.test_blocks import python

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
# Whole passes of Mamba-2 are upstream's Triton kernels, whose products are in TF32.
TOLERANCES = {"Mamba1": 5e-5, "Mamba2": 5e-3}


@pytest.mark.parametrize("check", ["greedy", "sampled", "unequal", "hybrid"])
def test_tokens_have_the_logits_of_whole_passes(check: str, tmp_path: Path) -> None:
    printed = python(
        "2.3.2.post1", tmp_path, "-W", "ignore", "-m", "tests.modules.generated", f"{check}_cuda"
    )
    print(printed)
    found = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert len(found) >= 2
    wrong = [
        (name, number) for name, number in found if not float(number) <= TOLERANCES[name.split()[1]]
    ]
    assert wrong == []
