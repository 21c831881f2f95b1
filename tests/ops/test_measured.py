"""No size that measurements chose changes unseen, no tolerance, no bound of what is kept.

What follows of one is in tests of its own, mostly with another value in its place. That it is this
one no result tells, but the time that a call takes and the memory that a program holds do.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from typing import Any

import torch

from jetson_mamba.export.check import _seconds

FLOAT, HALF, BRAIN, DOUBLE = torch.float32, torch.float16, torch.bfloat16, torch.float64
# By module; docs/notes-kernels.md and docs/notes-calls.md have the measurements.
CHOSEN: dict[str, dict[str, Any]] = {
    "dispatch.backends": {"MOST_CASES": 1024},
    "dispatch.projections": {"MOST_FRAMES": 12},
    "dispatch.workers": {"GRAIN": 32768},
    "export.check": {
        "TOLERANCE": {DOUBLE: 1e-10, FLOAT: 1e-5, HALF: 2e-2},
        "LENGTHS": (1, 63, 65),
    },
    "export.files": {"INLINE_BYTES": 1073741824},
    "export.forms.selective_scan": {"BLOCK": 8},
    "export.forms.ssd": {"CHUNK": 64, "GONE": -10000.0},
    "kernels.ahead": {"LEAST_CORES": 4},
    "kernels.compiler": {"SHARED_BYTES_OF_ALL": 49152, "FIRST_CUDA_OF_PACKAGES": 12},
    "kernels.tensors": {"VECTOR_BYTES": 16, "MAXIMUM_GRID": 65535, "MOST_PLANS": 256},
    "ops.causal_conv1d.pytorch": {"BLOCK": 262144},
    "ops.causal_conv1d.trial": {"TRIAL_TOLERANCE": {HALF: 1e-2, BRAIN: 5e-2, FLOAT: 1e-3}},
    "ops.decoding.layers": {"MOST_SEQUENCES": 64, "MOST_BLOCKS": 1024},
    "ops.decoding.layers_cpu": {"MOST_ALONE": 524288},
    "ops.decoding.layers_cuda": {"MOST_NORMED": 2048, "ALIGNMENT": 256},
    "ops.decoding.op": {"TRIAL_TOLERANCE": 5e-2},
    "ops.decoding.products": {"MOST_VECTORS": 4},
    "ops.decoding.pytorch": {"MOST_STATES": 262144},
    "ops.decoding.several_tokens": {
        "TOLERANCE": {DOUBLE: 1e-9, FLOAT: 5e-3},
        "TOLERANCE_OF_OTHERS": 5e-2,
        "MOST_AT_ONCE": 131072,
    },
    "ops.mamba3.composed": {"ROWS": 64, "BLOCK_ELEMENTS_CPU": 1048576, "BLOCK_ELEMENTS": 16777216},
    "ops.norms.serving": {"TRIAL_TOLERANCE": 5e-2},
    "ops.selective_scan.composed": {"BLOCK": 16, "TRACED_LEVELS": 4},
    "ops.selective_scan.contract": {"CHUNK": 2048},
    "ops.selective_scan.decomposed": {"BLOCK": 8, "LEVELS": 3},
    "ops.selective_scan.extension": {"MAX_DSTATE": 256, "LOAD_BYTES": 16, "BLOCK_STEPS": 128},
    "ops.selective_scan.parts": {"FEWEST_STATES": 512},
    "ops.selective_scan.pytorch": {"BLOCK_STATES": 524288, "MIN_BLOCK_STEPS": 16},
    "ops.ssd.block": {
        "CHUNK": 64,
        "BLOCK_ELEMENTS_CPU": 1048576,
        "BLOCK_ELEMENTS": 33554432,
        "MOST_DECAY": 1000.0,
        "LEAST_STEP": 1e-20,
    },
    "ops.ssd.cuda": {"MOST_STATES": {FLOAT: 128, HALF: 256, BRAIN: 256}},
    "ops.ssd.cuda_forward": {"LONGER": 1.65},
    "ops.ssd.op": {"MOST_FITTING": 1024},
    "ops.ssd.short": {"MOST_DECAY": 104.0, "ALIGNED": 8},
    "ops.swiglu.op": {"TRIAL_TOLERANCE": 5e-2, "MOST_COLUMNS": 33553920},
    "replay.blocks": {"MOST_ELEMENTS": 1048576, "MOST_ELEMENTS_OF_STEP": 32768},
    "replay.captured": {
        "MOST_ELEMENTS": 4194304,
        "MOST_GRAPHS": 1024,
        "MOST_BYTES": 268435456,
        "MOST_MET": 4096,
        "IDLE_CALLS": 16384,
        "MOST_STREAMS": 4,
    },
    "replay.models": {"MOST_SEQUENCES": 64},
    "replay.watching": {"CALLS_UNTIL_ANOTHER_LOOK": 64},
}


def test_a_size_is_what_was_chosen() -> None:
    for module, values in CHOSEN.items():
        found = import_module(f"jetson_mamba.{module}")
        assert {name: getattr(found, name) for name in values} == values, module


def test_a_comparison_takes_a_few_runs_and_seconds() -> None:
    given = inspect.signature(_seconds).parameters
    assert given["runs"].default == 5 and given["limit"].default == 10.0
