"""Arguments are told apart by what their fields are said to be, not by places that are counted."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.computation import Computation
from jetson_mamba.dispatch.fields import Fields, Tensors


class Sum(NamedTuple):
    """Arguments."""

    a: Tensor
    b: Tensor | None
    c: Tensor
    times: int
    name: str | None = None


FIELDS = Fields(Sum)


def test_what_is_unpacked_is_packed_again() -> None:
    given = Sum(torch.ones(1), None, torch.zeros(2), 3, "x")
    tensors, options = FIELDS.unpack(given)
    assert tensors == given[:3] and options == (3, "x")
    assert FIELDS.pack(tensors, options) == given
    assert FIELDS.split((*given, 7, 8)) == (given, (7, 8))


def test_a_gradient_goes_to_the_argument_of_its_name() -> None:
    one = torch.ones(1)
    assert FIELDS.gradients({"c": one}) == (None, None, one, None, None)


def test_a_tensor_after_an_option_is_refused() -> None:
    class Mixed(NamedTuple):
        a: Tensor
        times: int
        b: Tensor

    with pytest.raises(TypeError, match="Mixed: expected its tensors before all else"):
        Fields(Mixed)


def forward(given: Sum, factor: float) -> tuple[Tensors, list[Tensor]]:
    return composed(given, factor), [given.a * 2]


def composed(given: Sum, factor: float) -> Tensors:
    b = 0 if given.b is None else given.b
    return ((given.a.square() + b + 5 * given.c) * given.times * factor,)


def backward(given: Sum, kept: Any, dresults: Tensors, factor: float) -> dict[str, Any]:
    (dout,) = dresults
    assert dout is not None
    dout = dout * given.times * factor
    return {"c": 5 * dout, "b": None if given.b is None else dout, "a": kept[0] * dout}


@pytest.mark.parametrize("has_b", [True, False])
@pytest.mark.parametrize("recorded", [True, False])
def test_both_ways_back_give_each_argument_its_own(has_b: bool, recorded: bool) -> None:
    computation = Computation(FIELDS, forward, backward, composed)
    a, b, c = (torch.randn(3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    given = Sum(a, b if has_b else None, c, 2)
    leaves = [a, c, *([b] if has_b else [])]
    (out,) = computation(given, 0.5)
    found = torch.autograd.grad(out.sum(), leaves, create_graph=recorded)
    for gradient, right in zip(found, (2 * a, torch.full_like(c, 5), torch.ones_like(b))):
        torch.testing.assert_close(gradient, right)
        assert gradient.requires_grad is (recorded and gradient is found[0])
