"""Where Triton's kernels can run at all."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from jetson_mamba.ops.ssd import triton_runs_on


def test_triton_does_not_run_on_a_device_of_no_compiler() -> None:
    assert not triton_runs_on(torch.device("meta"))


@pytest.mark.parametrize(("value", "expected"), [("1", "True"), (None, "False")])
def test_triton_runs_on_a_cpu_under_its_interpreter_only(value: str | None, expected: str) -> None:
    pytest.importorskip("triton")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    if value is not None:
        environment["TRITON_INTERPRET"] = value
    program = (
        "import os, torch\n"
        "from jetson_mamba.ops.ssd import triton_runs_on\n"
        "first = triton_runs_on(torch.device('cpu'))\n"
        "os.environ['TRITON_INTERPRET'] = '0'\n"
        "assert triton_runs_on(torch.device('cpu')) is first, 'not remembered'\n"
        "print(first)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == expected
