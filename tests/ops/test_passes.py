"""Both passes of a computation by graphs, which are imitated here; ``tests/gpu`` has real ones."""

from __future__ import annotations

from typing import Any, Mapping, NamedTuple, Sequence

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.fields import Fields, Tensors
from jetson_mamba.replay import passes
from tests.ops.imitated import Imitated


class Product(NamedTuple):
    """The arguments of ``scale * x * weight + bias`` of the rows ``picked``, and of its square."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    picked: Tensor
    scale: float


class Passes:
    """Both, with what they were called with; a name in ``lacks`` has no gradient."""

    def __init__(self, lacks: str = "") -> None:
        self.calls: list[str] = []
        self._lacks = lacks
        fields: Fields[Product] = Fields(Product)
        self.forward, self.backward = passes.by_graphs(fields, 2, self._forward, self._backward)

    def _forward(self, given: Product, power: int) -> tuple[Tensors, Sequence[Tensor]]:
        self.calls.append("forward")
        scaled = (given.x * given.weight * given.scale)[given.picked]
        out = scaled if given.bias is None else scaled + given.bias
        return (out, None if self._lacks == "square" else out**power), (scaled,)

    def _backward(
        self, given: Product, kept: Sequence[Tensor], dresults: Tensors, power: int
    ) -> Mapping[str, Tensor | None]:
        self.calls.append("backward")
        (scaled,), (dout, dsquare) = kept, dresults
        out = scaled if given.bias is None else scaled + given.bias
        total = torch.zeros_like(out) if dout is None else dout
        total = total if dsquare is None else total + power * dsquare * out
        dx = torch.zeros_like(given.x).index_add(0, given.picked, total * given.weight)
        found = {
            "x": dx * given.scale,
            "weight": (total * given.x[given.picked]).sum(0) * given.scale,
            "bias": None if given.bias is None else total.sum(0),
        }
        return {name: each for name, each in found.items() if name != self._lacks}


def drawn(bias: bool = True, scale: float = 3.0, rows: int = 4) -> Product:
    picked = torch.tensor([2, 0, 2])
    return Product(
        torch.randn(rows, 5), torch.randn(5), torch.randn(5) if bias else None, picked, scale
    )


def hold(made: Passes, given: Product, dresults: Sequence[Any], power: int = 2) -> Passes:
    """Hold both passes to what they are without graphs."""
    right = Passes()
    results, kept = made.forward(given, power)
    expected, saved = right._forward(given, power)
    for one, other in zip((*results, *kept), (*expected, *saved)):
        torch.testing.assert_close(one, other)
    assert (len(results), len(kept)) == (2, 1)
    found = made.backward(given, kept, dresults, power)
    wanted = right._backward(given, saved, tuple(dresults), power)
    names = [name for name, each in wanted.items() if each is not None]
    assert [name for name, each in found.items() if each is not None] == names
    for name in names:
        torch.testing.assert_close(found[name], wanted[name])
    return made


def dresults_of(given: Product) -> list[Tensor]:
    return [torch.randn(3, 5), torch.randn(3, 5)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("missing", [None, 0, 1])
def test_both_passes_are_launched_from_the_second_call_of_a_kind_on(
    bias: bool, missing: int | None, imitated: list[Imitated]
) -> None:
    made = Passes()
    for turn in range(5):
        given = drawn(bias)
        dresults: list[Tensor | None] = [*dresults_of(given)]
        if missing is not None:
            dresults[missing] = None
        hold(made, given, dresults)
        # The first is the function's own; the second is captured, and each launch imitated by it.
        assert len(imitated) == (0 if turn == 0 else 2)
    assert [each.replays for each in imitated] == [4, 4]


def test_options_and_what_is_given_besides_have_graphs_of_their_own(
    imitated: list[Imitated],
) -> None:
    made = Passes()
    for _ in range(3):
        for scale, power, bias in ((3.0, 2, True), (4.0, 2, True), (3.0, 3, True), (3.0, 2, False)):
            given = drawn(bias, scale)
            results, kept = made.forward(given, power)
            expected, _ = Passes()._forward(given, power)
            for one, other in zip(results, expected):
                torch.testing.assert_close(one, other)
            made.backward(given, kept, dresults_of(given), power)
    assert len(imitated) == 8


def test_what_lacks_a_gradient_or_a_result_has_no_graph(imitated: list[Imitated]) -> None:
    for lacks in ("weight", "square"):
        made = Passes(lacks)
        for _ in range(3):
            given = drawn()
            results, kept = made.forward(given, 2)
            found = made.backward(given, kept, dresults_of(given), 2)
            assert (found.get("weight") is None) == (lacks == "weight")
            assert (results[1] is None) == (lacks == "square")
        # What there is all of has one.
        assert len(imitated) == 1
        imitated.clear()


@pytest.mark.parametrize(
    ("rows", "picked", "most", "graphs"),
    [
        # x alone is too large.
        *((4, [2, 0, 2], 19, 0), (4, [2, 0, 2], 20, 1)),
        # Its 78 numbers with all others of the backward pass are up to three times as many.
        *((4, [2, 0, 2], 25, 1), (4, [2, 0, 2], 26, 2)),
        # And 18 of the forward pass.
        *((1, [0, 0, 0], 5, 0), (1, [0, 0, 0], 6, 1)),
    ],
)
def test_of_large_calls_the_copies_would_cost_more(
    rows: int,
    picked: list[int],
    most: int,
    graphs: int,
    imitated: list[Imitated],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passes, "MOST_ELEMENTS", most)
    made = Passes()
    for _ in range(2):
        given = drawn(rows=rows)._replace(picked=torch.tensor(picked))
        hold(made, given, dresults_of(given))
    assert len(imitated) == graphs
