"""A test that leaves something changed for those that follow is told so. It is put back."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import Any, Callable

import pytest
import torch

import jetson_mamba
import jetson_mamba.ops
from jetson_mamba.dispatch import paths
from tests import process

# A block that is entered is left at the end of the test.
BLOCK = ExitStack()
LEFT: dict[str, Callable[[], Any]] = {
    "the finder": jetson_mamba.deactivate,
    "sys.path": lambda: sys.path.insert(0, "/elsewhere"),
    "the environment": lambda: os.environ.update(JETSON_MAMBA_CACHE="/elsewhere"),
    "the folder": lambda: os.chdir("/"),
    "the backends that are named": lambda: BLOCK.enter_context(jetson_mamba.backend(ssd="pytorch")),
    "the inference path": lambda: BLOCK.enter_context(paths.inference_path(not paths._inference)),
    "torch's default dtype": lambda: torch.set_default_dtype(torch.float64),
    "torch's threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "whether torch keeps gradients": lambda: torch.set_grad_enabled(False),
    "whether torch is deterministic": lambda: torch.use_deterministic_algorithms(True),
    "the precision of torch's products": lambda: torch.set_float32_matmul_precision("medium"),
}


@pytest.mark.parametrize("name", process.SHARED)
def test_what_is_left_changed_is_told_and_put_back(name: str) -> None:
    before = process.states()
    assert process.changed(before) == {}
    with BLOCK:
        LEFT[name]()
        assert list(process.changed(before)) == [name]
        assert process.states() == before
    assert process.changed(before) == {}


def test_each_is_left_changed_here() -> None:
    assert set(LEFT) == set(process.SHARED)
