"""Runs checks by their names in a process of its own, for the tests that start one."""

from __future__ import annotations

import os
import sys
from typing import Callable, Iterator, Mapping

import torch


def device() -> torch.device:
    """Where :func:`run` lets tensors and modules be made."""
    return torch.device("cuda" if os.environ.get("CHECKS_ON_GPU") == "1" else "cpu")


def run(checks: Mapping[str, Callable[[], Iterator[tuple[str, float]]]]) -> None:
    """Run those named on the command line; print a line for each result, its number last.

    Under ``TRITON_INTERPRET=1`` upstream's Triton kernels run on the CPU. With ``CHECKS_ON_GPU=1``
    tensors and modules are made on a GPU.
    """
    if device().type == "cuda":
        # A default device would be a mode, which looks at every call.
        torch.set_default_tensor_type("torch.cuda.FloatTensor")
    if os.environ.get("TRITON_INTERPRET") == "1":
        from tests.releases import triton_on_cpu

        triton_on_cpu.prepare()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        for result, number in checks[name]():
            print(f"{name} {result} {number:.3e}")
