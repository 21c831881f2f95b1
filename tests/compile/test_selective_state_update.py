"""One step of decoding in a graph: traced whole on a CPU, with the state written in place."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import triton_dispatch
from jetson_mamba.ops import where_triton_runs
from jetson_mamba.ops.decoding import selective_state_update
from tests.ops.test_selective_state_update import BATCH, STATES, arguments, tied, without_heads
from tests.references.tolerance import relative_norm

# What torch's own compiler warns of is its own.
pytestmark = [
    pytest.mark.skipif(
        not hasattr(torch.library, "register_autograd"), reason="operators need torch 2.4"
    ),
    pytest.mark.filterwarnings("ignore"),
]
INDICES = torch.tensor([5, -1, 0])


def in_bfloat16(given: dict[str, Any]) -> dict[str, Any]:
    return {
        name: each.bfloat16() if isinstance(each, Tensor) and name != "A" else each
        for name, each in given.items()
    }


CASES = {
    "heads": arguments(dt_softplus=True),
    "no heads": without_heads(arguments(1, 1)),
    "tied": tied(arguments(dt_softplus=True)),
    "bfloat16": in_bfloat16(arguments()),
    "indices": arguments(states=STATES, state_batch_indices=INDICES),
    "padding only": arguments(states=STATES, state_batch_indices=INDICES * 0 - 1),
}


def not_launched(*_: Any, **__: Any) -> Tensor:
    raise AssertionError("a kernel was launched for a CPU")


def differences(given: dict[str, Any], **options: Any) -> dict[str, float]:
    """How far output and states are from an eager call's, at two batch sizes."""
    torch._dynamo.reset()
    function = where_triton_runs(not_launched, selective_state_update)
    whole: Any = torch.compile(function, fullgraph=True, **options)
    found = {}
    for batch in (BATCH, 2):
        call = {
            name: each[:batch]
            if isinstance(each, Tensor) and name in ("x", "dt", "B", "C", "z")
            else each
            for name, each in given.items()
        }
        indices = call.get("state_batch_indices")
        if indices is not None:
            indices = call["state_batch_indices"] = indices[:batch]
        states = [given["state"].clone() for _ in range(2)]
        outs = [each(**{**call, "state": state}) for each, state in zip((whole, function), states)]
        found[f"out {batch}"] = relative_norm(*outs)
        found[f"state {batch}"] = relative_norm(*states)
        changed = not torch.equal(states[1], given["state"])
        assert changed is (indices is None or bool((indices >= 0).any()))
    return found


@pytest.mark.parametrize(
    ("case", "dynamic"),
    [*((case, False) for case in CASES), *((case, True) for case in ("tied", "indices"))],
)
def test_a_step_is_traced_whole_and_writes_its_state(case: str, dynamic: bool) -> None:
    found = differences(CASES[case], backend="aot_eager", dynamic=dynamic)
    assert {name: each for name, each in found.items() if not each <= 1e-6} == {}


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler on a CPU")
def test_a_step_compiles_with_inductor() -> None:
    found = differences(CASES["tied"], dynamic=True)
    assert {name: each for name, each in found.items() if not each <= 1e-6} == {}


def test_a_graph_for_a_gpu_holds_what_upstream_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking Triton would break the graph: only the type of the device is asked for."""

    def asked(device: torch.device) -> bool:
        raise AssertionError("Triton was asked while a graph was traced")

    monkeypatch.setattr(triton_dispatch, "triton_runs_on", asked)
    monkeypatch.setattr(triton_dispatch, "is_compiling", lambda: True)

    class OnGpu:
        device = torch.device("cuda", 0)

    function = where_triton_runs(lambda state: "launched", lambda state: "computed")
    assert function(OnGpu()) == "launched"
    OnGpu.device = torch.device("cpu")
    assert function(OnGpu()) == "computed"
