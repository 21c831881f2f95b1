"""A prompt in pieces leaves what one pass leaves."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import jetson_mamba
from tests.releases.test_blocks import python


@pytest.mark.parametrize("check", ["pieces", "foreign"])
def test_pieces_leave_what_one_pass_leaves(check: str, tmp_path: Path) -> None:
    printed = python(
        "2.3.2.post1", tmp_path, "-W", "ignore", "-m", "tests.modules.prefilled", check
    )
    lines = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert len(lines) == (30 if check == "pieces" else 3)
    assert {name: number for name, number in lines if not float(number) <= 5e-6} == {}


class Model(nn.Module):
    """Takes what a model of mamba_ssm takes."""

    def forward(
        self, input_ids: Any, inference_params: Any = None, num_last_tokens: int = 0
    ) -> Any:
        """As many logits."""
        return SimpleNamespace(logits=input_ids)


@pytest.mark.parametrize(
    ("model", "ids", "piece", "error", "message"),
    [
        (
            nn.Linear(1, 1),
            torch.zeros(1, 1).long(),
            2,
            TypeError,
            "found Linear, which takes input",
        ),
        (Model(), torch.zeros(1, 1), 2, TypeError, r"of integers, found torch\.float32"),
        (Model(), [[1]], 2, TypeError, "of integers, found list"),
        (Model(), torch.zeros(1).long(), 2, ValueError, r"found \[1\]"),
        (Model(), torch.zeros(1, 1).long(), True, ValueError, "found True"),
        (Model(), torch.zeros(1, 1).long(), 2.0, ValueError, r"found 2\.0"),
        (Model(), torch.zeros(1, 1).long(), 0, ValueError, "found 0"),
        (Model(), torch.zeros(1, 0).long(), 2, ValueError, r"found \[1, 0\]"),
    ],
)
def test_bad_input_is_named(
    model: nn.Module, ids: Any, piece: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        jetson_mamba.prefill(model, ids, SimpleNamespace(seqlen_offset=0), piece=piece)
