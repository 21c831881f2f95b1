"""Arguments are told apart by what their fields are said to be, not by places that are counted."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch import fields
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


def test_a_schema_of_torch_library_says_what_the_fields_are() -> None:
    assert FIELDS.schema == "Tensor a, Tensor? b, Tensor c, int times, str? name=None"
    torch._C.parse_schema(f"sum({FIELDS.schema}) -> Tensor")


# What the functions of autograd and of operators call what they are given, saved or give back.
GIVEN = {"arguments", "inputs", "given", "others", "of", "options", "tensors", "args", "gradients"}
GIVEN |= {"needs_input_grad", "saved_tensors"}
PACKAGE = Path(fields.__file__).parent.parent
ROOMS = ("dispatch", "export", "ops")


def by_place(node: ast.AST) -> bool:
    """Whether it picks arguments by numbers: some of them, any but the first, or so many Nones.

    The first, the last and what follows the first are as clear as a name.
    """
    if isinstance(node, ast.Subscript) and not isinstance(node.slice, ast.Tuple):  # of a tensor
        name = getattr(node.value, "id", getattr(node.value, "attr", ""))
        is_slice = isinstance(node.slice, ast.Slice)
        places = re.findall(r"(?<![\w-])\d+", ast.unparse(node.slice))
        return name in GIVEN and any(int(each) > is_slice for each in places)
    return isinstance(node, ast.BinOp) and bool(
        re.fullmatch(r"[\[(]None,?[\])] \* .*\d.*", ast.unparse(node))
    )


@pytest.mark.parametrize("text", ["given[10:]", "found(inputs[:6])", "(None,) * 8", "of[2]"])
def test_a_place_that_is_counted_is_found(text: str) -> None:
    assert any(map(by_place, ast.walk(ast.parse(text))))


def test_no_argument_is_known_by_a_place_that_is_counted() -> None:
    """One more parameter would shift every gradient after it."""
    counted = [
        f"{path.relative_to(PACKAGE)}: {ast.unparse(node)}"
        for room in ROOMS
        for path in sorted((PACKAGE / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if by_place(node)
    ]
    assert not counted, counted


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
