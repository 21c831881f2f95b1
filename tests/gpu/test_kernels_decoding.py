"""The CUDA kernel of a decoding step against the definition in float64, on a GPU."""

from __future__ import annotations

import itertools
import random
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops.decoding import cuda, pytorch
from jetson_mamba.ops.decoding.contract import Case, Step
from tests.references.tolerance import relative_norm

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]
TOLERANCE = {torch.float32: 3e-6, torch.float16: 5e-4, torch.bfloat16: 2.8e-3}


class Setup(NamedTuple):
    """One step."""

    batch: int
    nheads: int
    ngroups: int
    dim: int
    dstate: int
    state_dtype: torch.dtype
    dtype: torch.dtype
    tied: bool
    everything: bool
    indices: torch.dtype | None
    sliced: bool


def setups() -> list[Setup]:
    draw = random.Random(7)
    sizes = [(1, 24, 1, 64, 128), (3, 1, 1, 130, 16), (2, 4, 2, 5, 7), (130, 2, 2, 64, 64)]
    sizes += [(1, 1, 1, 1, 1), (2, 2, 1, 33, 256), (1, 3, 3, 16, 100)]
    return [
        Setup(
            *size,
            state_dtype,
            dtype,
            draw.random() < 0.6,
            draw.random() < 0.7,
            draw.choice((None, torch.int32, torch.int64)),
            draw.random() < 0.3,
        )
        for size, state_dtype, dtype in itertools.product(sizes, TOLERANCE, TOLERANCE)
    ]


def step_of(setup: Setup) -> Step:
    torch.manual_seed(0)
    batch, nheads, ngroups, dim, dstate = setup[:5]

    def drawn(dtype: torch.dtype, *shape: int) -> Tensor:
        if setup.sliced:
            return torch.randn(*shape[:-1], 2 * shape[-1] + 1, device="cuda").to(dtype)[
                ..., 1 : 1 + shape[-1]
            ]
        return torch.randn(*shape, device="cuda").to(dtype)

    count = batch + 3
    indices = None
    if setup.indices is not None:
        indices = torch.randperm(count, device="cuda")[:batch].to(setup.indices)
        if batch > 1:
            indices[1] = -1
    tied = (nheads, 1) if setup.tied else (nheads, dim)
    rates = (nheads, 1, 1) if setup.tied else (nheads, dim, dstate)
    whole = (nheads, dim)
    return Step(
        drawn(setup.state_dtype, count, nheads, dim, dstate),
        drawn(setup.dtype, batch, nheads, dim),
        drawn(setup.dtype, batch, *tied).expand(batch, *whole),
        -torch.rand(*rates, device="cuda").expand(*whole, dstate),
        drawn(setup.dtype, batch, ngroups, dstate),
        drawn(setup.dtype, batch, ngroups, dstate),
        torch.randn(*whole, device="cuda") if setup.everything else None,
        drawn(setup.dtype, batch, *whole) if setup.everything else None,
        torch.randn(*tied, device="cuda").expand(*whole) if setup.everything else None,
        indices,
        setup.everything,
    )


@pytest.mark.parametrize("setup", setups(), ids=str)
def test_a_step_agrees_with_the_definition(setup: Setup) -> None:
    step = step_of(setup)
    wide: Any = [
        each.double() if isinstance(each, Tensor) and each.is_floating_point() else each
        for each in step
    ]
    exact = Step(*wide)
    expected = pytorch.update(exact)
    case = Case(step.x.device, *(each.dtype for each in (step.states, step.x, step.dt, step.A)))
    found = cuda.load(case)(step)
    assert found is not None
    assert relative_norm(found, expected) < TOLERANCE[setup.dtype]
    assert relative_norm(step.states, exact.states) < TOLERANCE[setup.state_dtype]


def test_states_that_no_sequence_has_are_left_as_they_were() -> None:
    dtype = torch.float32
    step = step_of(Setup(2, 4, 1, 64, 128, dtype, dtype, True, True, torch.int32, False))
    before = step.states.clone()
    case = Case(step.x.device, *[dtype] * 4)
    assert cuda.load(case)(step) is not None
    assert step.indices is not None
    changed = (step.states != before).flatten(1).any(1).nonzero().flatten().tolist()
    assert changed == [int(step.indices[0])]
