"""The command `bench` on a GPU: its times are those of the kernels, within what events tell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jetson_mamba.report.timing import Timer
from tests.cli.command import jetson_mamba

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU"),
]


def test_the_convolution_is_timed_by_every_backend_that_is_there(tmp_path: Path) -> None:
    done = jetson_mamba(
        *("bench", "--op", "causal_conv1d", "--dtype", "bfloat16", "--rep", "20", "--json"),
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(json.dumps(found, indent=2))
    assert found["device"] == "cuda" and found["name"] == torch.cuda.get_device_name()
    for row in found["rows"]:
        assert {"pytorch"} <= set(row["microseconds"])
        # Nothing beats the fewest bytes by more than what a copy's rate is uncertain by.
        assert 0 < row["of_floor"] < 1.2


def test_the_queue_hides_what_the_host_takes_to_launch() -> None:
    """A kernel of a few microseconds, behind Python that takes many times as long."""
    x = torch.ones(1024, device="cuda")

    def call() -> None:
        sum(range(1000))
        x.add_(1)

    assert Timer(torch.device("cuda")).microseconds(call, milliseconds=50) < 25


def test_a_copy_runs_at_most_at_the_rate_of_any_memory() -> None:
    """Within 10 GB/s, half of the smallest board's, and 20 TB/s."""
    assert 1e4 < Timer(torch.device("cuda")).copy_rate() < 2e7
