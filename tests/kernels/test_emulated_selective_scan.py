"""The kernels of the selective scan agree on a CPU with float64.

All that surrounds them runs with them. Time is cut into segments where channels are few, and
channels share a block's sums where states are many: each has kernels, or arguments, of its own.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.ops.selective_scan import cuda, plans
from jetson_mamba.ops.selective_scan import op as selective_scan
from tests.kernels.emulated import emulate, serve
from tests.ops.scan_setups import (
    Variant,
    drawn,
    fn,
    hold_to_reference,
    named,
    reference,
    use_only,
)
from tests.references.tolerance import relative_norm

segments_of = plans._segments.__wrapped__
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")


@pytest.fixture(autouse=True)
def on_the_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, libraries)
    serve(monkeypatch, cuda)
    of_processors(1, monkeypatch)
    use_only("cuda", monkeypatch)


def of_processors(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan for a GPU of so many multiprocessors."""
    for plan in ("_forward_plans", "_backward_plans"):
        monkeypatch.setattr(cuda, plan, Memo(8))
    monkeypatch.setattr(plans, "processors", lambda index: count)
    monkeypatch.setattr(plans, "_segments", segments_of)


@pytest.mark.parametrize(
    ("variant", "processors"),
    [
        (Variant(), 1),
        (Variant(is_complex=True, variable_b=False, groups=3, d=False, softplus=False), 1),
        (Variant(variable_b=False, variable_c=False, z=False, delta_bias=False, seqlen=20), 1),
        # Whole vectors; segments forward and, shorter ones, backward.
        (Variant(seqlen=1024, dim=2, dstate=4, batch=1, groups=1), 132),
        (Variant(dtype=torch.bfloat16, seqlen=520, dim=2, dstate=3, batch=1, z=False), 132),
        # A block takes several sets of channels.
        (Variant(dim=21, dstate=66, batch=1, groups=1, seqlen=9), 1),
    ],
    ids=lambda each: named(each) if isinstance(each, Variant) else str(each),
)
def test_both_passes_agree_with_float64(
    variant: Variant, processors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    of_processors(processors, monkeypatch)
    hold_to_reference(drawn(variant), upstream_rows=False)


def test_without_a_backward_pass_to_come_the_output_is_the_same() -> None:
    arguments = drawn(Variant())
    with torch.no_grad():
        assert relative_norm(fn(arguments), reference(arguments).out_z) < 1e-5
    (choice,) = selective_scan.OP.choices().values()
    assert choice.backend == "cuda"
