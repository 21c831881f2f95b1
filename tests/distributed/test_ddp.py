"""Two processes train the blocks of a real release through the copies, as one process would."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import interpreters
from tests.faults.environment import Environment
from tools.releases import release_path

RELEASE = "2.3.2.post1"
TRAIN = Path(__file__).with_name("train.py")
# Each process compares 9 parameters of Mamba and 8 of Mamba-2 in three steps.
GRADIENTS = 3 * (9 + 8)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """An environment with the startup file, that release with nothing compiled, and torch."""
    environment = Environment(tmp_path, outer=True)
    shutil.rmtree(environment.site / "mamba_ssm")
    (environment.site / "mamba_ssm").symlink_to(release_path(RELEASE) / "mamba_ssm")
    return environment


def test_two_processes_have_the_gradients_of_one_with_the_whole_batch(
    environment: Environment,
) -> None:
    done = subprocess.run(
        [
            *(environment.python, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", os.fspath(TRAIN)),
        ],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith(("JETSON_", "PYTHON"))},
            "JETSON_MAMBA_CACHE": str(interpreters.copies()),
            "OMP_NUM_THREADS": "1",
        },
        cwd=environment.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        told = json.loads((environment.folder / f"rank-{rank}.json").read_text())
        assert told["activated_by"] == "startup file"
        assert {Path(path).parent for path in told["files"]} == {interpreters.copies() / "copies"}
        assert len(told["errors"]) == GRADIENTS
        assert {where: error for where, error in told["errors"].items() if not error <= 1e-5} == {}
