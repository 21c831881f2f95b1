"""Which modules a fused call may go past: those that are known, with nothing on them."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.dispatch.projections import _is_ordinary

KNOWN: tuple[Callable[[], nn.Module], ...] = (
    lambda: nn.Linear(2, 3),
    lambda: nn.Linear(2, 3, bias=False),
    lambda: nn.Conv1d(2, 2, 3, bias=False),
    lambda: nn.LayerNorm(2, elementwise_affine=False),
    nn.SiLU,
)


def called(*_: Any) -> None:
    """Of a hook."""


class Wrapped(Tensor):
    """A weight of a class of its own."""


def of_its_own(module: nn.Module) -> None:
    weight = torch.zeros(3, 2).as_subclass(Wrapped)
    module._parameters["weight"] = nn.Parameter(weight)


def with_a_forward(module: nn.Module) -> None:
    module.forward = called


CHANGES: tuple[Callable[[nn.Module], object], ...] = (
    lambda module: module.register_forward_hook(called),
    lambda module: module.register_forward_pre_hook(called),
    lambda module: module.register_full_backward_hook(called),
    with_a_forward,
    of_its_own,
)


@pytest.mark.parametrize("make", KNOWN)
def test_a_module_of_torch_is_an_ordinary_one_with_bias_or_without(
    make: Callable[[], nn.Module],
) -> None:
    assert _is_ordinary(make())


@pytest.mark.parametrize("change", CHANGES)
def test_one_with_something_on_it_is_none(change: Callable[[nn.Module], object]) -> None:
    module = nn.Linear(2, 3)
    change(module)
    assert not _is_ordinary(module)


def test_one_of_a_program_is_none() -> None:
    class Linear(nn.Linear):
        pass

    assert not _is_ordinary(Linear(2, 3))
