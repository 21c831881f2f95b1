"""The kernel of a decoding step agrees on a CPU with float64.

All that surrounds it runs with it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.errors import Unavailable
from jetson_mamba.ops.decoding import cuda, pytorch
from jetson_mamba.ops.decoding.contract import Case, Step
from tests.kernels.emulated import emulate, serve
from tests.references.tolerance import relative_norm

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
FLOAT, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
TOLERANCE = {FLOAT: 3e-6, HALF: 1e-3, BRAIN: 6e-3}


@pytest.fixture(autouse=True)
def on_the_cpu(libraries: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    emulate(monkeypatch, libraries)
    serve(monkeypatch, cuda)


class Setup(NamedTuple):
    """One step; ``apart`` numbers lie between one row and the next."""

    batch: int
    nheads: int
    ngroups: int
    dim: int
    dstate: int
    state_dtype: torch.dtype = FLOAT
    dtype: torch.dtype = FLOAT
    tied: bool = False
    everything: bool = True
    indices: torch.dtype | None = None
    apart: int = 0


def step_of(setup: Setup) -> Step:
    torch.manual_seed(0)
    batch, nheads, ngroups, dim, dstate = setup[:5]

    def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
        whole = torch.randn(*shape[:-1], setup.apart + shape[-1])
        return whole.to(dtype)[..., setup.apart :]

    count, indices = batch + 3, None
    if setup.indices is not None:
        indices = torch.randperm(count)[:batch].to(setup.indices)
        indices[1] = -1
    tied = (nheads, 1) if setup.tied else (nheads, dim)
    rates = (nheads, 1, 1) if setup.tied else (nheads, dim, dstate)
    whole = (nheads, dim)
    return Step(
        drawn(setup.state_dtype, count, nheads, dim, dstate),
        drawn(setup.dtype, batch, nheads, dim),
        drawn(setup.dtype, batch, *tied).expand(batch, *whole),
        -torch.rand(*rates).expand(*whole, dstate),
        drawn(setup.dtype, batch, ngroups, dstate),
        drawn(setup.dtype, batch, ngroups, dstate),
        torch.randn(*whole) if setup.everything else None,
        drawn(setup.dtype, batch, *whole) if setup.everything else None,
        torch.randn(*tied).expand(*whole) if setup.everything else None,
        indices,
        setup.everything,
    )


SETUPS = (
    # Many rows for one multiprocessor: a thread has several, in several tiles.
    Setup(2, 4, 2, 64, 64, tied=True),
    Setup(3, 2, 1, 70, 16, everything=False, indices=torch.int64),
    Setup(2, 2, 2, 5, 7, BRAIN, HALF, apart=1),
    # More than one run of states each.
    Setup(1, 1, 1, 33, 256, BRAIN, BRAIN, tied=True),
    Setup(2, 3, 3, 16, 8, FLOAT, BRAIN, indices=torch.int32, apart=8),
)


def case_of(step: Step) -> Case:
    return Case(step.x.device, *(each.dtype for each in (step.states, step.x, step.dt, step.A)))


@pytest.mark.parametrize("setup", SETUPS, ids=str)
def test_a_step_agrees_with_the_definition(setup: Setup) -> None:
    step = step_of(setup)
    wide: Any = [
        each.double() if isinstance(each, Tensor) and each.is_floating_point() else each
        for each in step
    ]
    exact = Step(*wide)
    expected = pytorch.update(exact)
    found = cuda.load(case_of(step))(step)
    assert found is not None
    assert relative_norm(found, expected) < TOLERANCE[setup.dtype]
    assert relative_norm(step.states, exact.states) < TOLERANCE[setup.state_dtype]


def changed(**others: Any) -> Step:
    """A step that the kernel takes, but for these."""
    step = step_of(Setup(2, 2, 1, 4, 8))
    return step._replace(**{name: make(getattr(step, name)) for name, make in others.items()})


@pytest.mark.parametrize(
    "step",
    [
        changed(states=lambda each: each.transpose(2, 3).contiguous().transpose(2, 3)),
        changed(states=lambda each: each[:1].expand(each.shape)),
        changed(states=lambda each: each[:, :1].expand(each.shape)),
        changed(states=lambda each: each[:, :, :1].expand(each.shape)),
        changed(B=lambda each: each.double()),
        changed(z=lambda each: each.half()),
        changed(D=lambda each: each.double()),
        changed(dt_bias=lambda each: each.double()),
        step_of(Setup(1, 1, 1, 1, 1028)),
    ],
)
def test_what_the_kernel_does_not_take_is_left_to_others(step: Step) -> None:
    """Columns of the state apart, states that are one memory, other dtypes, very long rows."""
    assert cuda.load(case_of(step))(step) is None


@pytest.mark.parametrize("field", ["state_dtype", "dtype", "step_dtype", "weight_dtype"])
def test_a_dtype_that_is_none_of_the_kernels_is_refused(field: str) -> None:
    case: Any = case_of(step_of(Setup(1, 1, 1, 1, 1)))
    with pytest.raises(Unavailable, match=r"float32, float16 and bfloat16, not torch\.float64"):
        cuda.load(case._replace(**{field: torch.float64}))
