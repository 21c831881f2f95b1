"""transformers' Mamba models take their fast path with the stand-in, nothing being compiled.

They look for the functions of causal_conv1d and mamba_ssm when they are imported, whatever the
device, and compute the same by slow functions of their own where they find none.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from tests import interpreters
from tests.references.tolerance import relative_norm
from tests.releases.transformers_models import FUNCTIONS, MODELS, STEPS
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
COMPUTED = ("training", "evaluated", "continued", "decoded", "generated")
OPS = {"Mamba": {"causal_conv1d", "selective_scan"}, "Mamba2": {"causal_conv1d", "ssd"}}


class Process(NamedTuple):
    """What a process has found, which ops it has called how often, and what came of it."""

    found: dict[str, dict[str, str]]
    calls: dict[str, dict[str, int]]
    computed: dict[str, dict[str, Tensor]]


def transformers_models(
    folder: Path, *computed: str, device: str = "cpu", path: tuple[Path, ...] = (), **variables: str
) -> Process:
    """Run ``tests.releases.transformers_models`` with ``path`` before everything else."""
    folder.mkdir()
    done = interpreters.run(
        [
            *("-W", "ignore", "-c"),
            # Activation comes first, where no startup file has seen to it.
            "import jetson_mamba; from tests.releases import transformers_models as models; "
            "models.main()",
            *(str(folder / "computed.pt"), device, *computed),
        ],
        env={
            **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
            "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(interpreters.copies()),
            **variables,
        },
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return Process(report["found"], report["calls"], torch.load(folder / "computed.pt"))


def errors(fast: Process, slow: Process, what: str) -> dict[str, float]:
    """The relative norm of what the fast path's results differ by."""
    expected = slow.computed[what]
    assert fast.computed[what].keys() == expected.keys()
    return {
        name: relative_norm(fast.computed[what][name], right) for name, right in expected.items()
    }


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> Process:
    """With jetson_mamba and a release of mamba-ssm, nothing compiled."""
    folder = tmp_path_factory.mktemp("fast") / "run"
    return transformers_models(folder, *COMPUTED, path=(release_path("2.3.2.post1"),))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Process:
    """The same release without jetson_mamba: it cannot be imported, and transformers does not."""
    folder = tmp_path_factory.mktemp("slow") / "run"
    path = (release_path("2.3.2.post1"),)
    return transformers_models(folder, *COMPUTED, path=path, JETSON_MAMBA="off")


def test_the_models_find_the_stand_in_and_the_modified_copies(fast: Process, slow: Process) -> None:
    for name in MODELS:
        own = f"transformers.models.{name.lower()}.modeling_{name.lower()}"
        assert slow.found[name] == dict.fromkeys(FUNCTIONS[name], own)
        homes = {function: home.partition(".")[0] for function, home in fast.found[name].items()}
        assert homes == {
            function: "jetson_mamba" if function.startswith("causal_conv1d") else "mamba_ssm"
            for function in FUNCTIONS[name]
        }


@pytest.mark.parametrize("what", COMPUTED)
@pytest.mark.parametrize("name", MODELS)
def test_what_runs_are_the_ops(name: str, what: str, fast: Process, slow: Process) -> None:
    calls = fast.calls[f"{name} {what}"]
    assert calls.keys() == OPS[name]
    assert min(calls.values()) >= MODELS[name]["num_hidden_layers"]
    assert slow.calls[f"{name} {what}"] == {}


@pytest.mark.parametrize("what", COMPUTED)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_states_equal_those_of_the_slow_path(
    name: str, what: str, fast: Process, slow: Process
) -> None:
    found = errors(fast, slow, f"{name} {what}")
    assert len(found) >= {"decoded": STEPS, "generated": 2}.get(what, 5)
    assert {result: error for result, error in found.items() if not error <= 2e-6} == {}


def test_without_the_stand_in_the_convolution_is_the_slow_one(tmp_path: Path) -> None:
    path = (release_path("2.3.2.post1"),)
    process = transformers_models(tmp_path / "run", path=path, JETSON_MAMBA_STAND_IN="off")
    own = "transformers.models.mamba.modeling_mamba"
    assert process.found["Mamba"]["causal_conv1d_fn"] == own
