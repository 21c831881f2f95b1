"""The Mamba block of a release gives in a graph on a GPU what its eager calls give.

Its inference path does so in bfloat16.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.releases.test_blocks import python

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# Products of two bfloat16 numbers are added in another order by the two paths.
TOLERANCE = {"autocast": 2e-2, "inference": 2e-2}


@pytest.mark.parametrize(
    "checks",
    [
        ("traced", "symbolic", "autocast", "breaks", "fork"),
        ("inductor", "cuda_graphs"),
        ("exported", "inference"),
    ],
    ids=" ".join,
)
def test_a_block_on_a_gpu_is_what_its_eager_calls_are(
    checks: tuple[str, ...], tmp_path: Path
) -> None:
    program = (
        "import sys, torch; torch.set_default_device('cuda'); "
        f"sys.argv = ['', {str(checks)[1:-1]}]; "
        "from tests.compile import mamba; mamba.main()"
    )
    printed = python("2.3.2.post1", tmp_path, "-W", "ignore", "-c", program)
    found = [line.rsplit(" ", 1) for line in printed.splitlines()]
    assert {name.split()[0] for name, _ in found} == set(checks)
    for name, difference in found:
        # Float32 products of cuBLAS and of the kernels differ by more than a CPU's.
        assert float(difference) <= TOLERANCE.get(name.split()[0], 2e-5), name
