"""Where Triton's kernels can run at all."""

from __future__ import annotations

import os
from typing import Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import triton_runs
from jetson_mamba.ops import norms
from jetson_mamba.ops.ssd import triton_runs_on
from tests import interpreters


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
    done = interpreters.run(["-c", program], env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, expected), done.stderr


_X, _WEIGHT = torch.ones(2, 8), torch.ones(8)
FIRST_IN_A_GRAPH = {
    "layer norm": lambda x: norms.layer_norm_fn(x, _WEIGHT, None),
    "gated norm": lambda x: norms.rmsnorm_fn(x, _WEIGHT, None, z=x),
    "the question itself": lambda x: x + int(triton_runs_on(x.device)),
}


@pytest.mark.parametrize("function", FIRST_IN_A_GRAPH.values(), ids=list(FIRST_IN_A_GRAPH))
def test_a_graph_that_is_the_first_to_ask_is_traced_in_one(
    function: Callable[[Tensor], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_runs, "_answers", triton_runs._Answers())
    torch._dynamo.reset()
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    with torch.no_grad():
        found = compiled(_X)
        torch.testing.assert_close(found, function(_X))
