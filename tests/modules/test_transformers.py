"""transformers' models are trained with things on their projections as without the hook.

On a CPU it is the hook that gives them fused functions, which take weights, and no mask.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests import interpreters
from tests.references.tolerance import relative_norm
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
pytest.importorskip("transformers", minversion="5.0")


def models(folder: Path, *path: Path, **variables: str) -> dict[str, dict[str, Tensor]]:
    folder.mkdir()
    done = interpreters.run(
        ["-W", "ignore", "-m", "tests.modules.models", str(folder / "computed.pt")],
        env={
            **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
            "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY))),
            "JETSON_MAMBA_CACHE": str(interpreters.copies()),
            **variables,
        },
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    computed: dict[str, dict[str, Tensor]] = torch.load(folder / "computed.pt")
    return computed


def test_models_are_trained_as_without_the_hook(tmp_path: Path) -> None:
    found = models(tmp_path / "on", release_path("2.3.2.post1"))
    right = models(tmp_path / "off", JETSON_MAMBA="off")
    assert found.keys() == right.keys()
    assert len(found) == 119
    different = {
        f"{name}: {each}": relative_norm(found[name].get(each, torch.empty(0)), value)
        for name, values in right.items()
        for each, value in values.items()
    }
    assert {name: error for name, error in different.items() if not error <= 1e-3} == {}
    assert all(found[name].keys() == values.keys() for name, values in right.items())
