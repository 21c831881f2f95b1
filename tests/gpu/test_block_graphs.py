"""Whole blocks of a real release in CUDA graphs give what they give without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.releases.test_blocks import python

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize(
    ("check", "tolerance"),
    [
        ("forward", 2e-2),
        ("single_precision", 2e-2),
        ("training_between", 5e-3),
        # The same kernels, whose sums are taken in the same order.
        ("step", 0.0),
        ("step_in_few_kernels", 2e-2),
        ("step_in_a_graph_of_the_user", 0.0),
    ],
)
def test_a_graph_of_a_block_gives_what_the_block_gives(
    check: str, tolerance: float, tmp_path: Path
) -> None:
    printed = python("2.3.2.post1", tmp_path, "-W", "ignore", "-m", "tests.gpu.block_graphs", check)
    print(printed)
    found = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert len(found) >= 4 * 4
    for name, difference in found:
        # As many graphs as there are kinds of calls: no more, no fewer.
        assert float(difference) <= (0 if name.endswith("graphs") else tolerance), name
        assert float(difference) >= 0, name
