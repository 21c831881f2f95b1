"""Which calls a CUDA graph launches, with a stand-in for the graph; ``tests/gpu`` has real ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops import captured
from jetson_mamba.ops.captured import Captured
from tests.ops.imitated import Imitated


def test_on_a_cpu_every_call_is_the_functions_own() -> None:
    calls = []

    def function(inputs: tuple[Tensor, ...], weights: Any, scale: float) -> tuple[Tensor, ...]:
        calls.append(scale)
        return (inputs[0] * weights[0] * scale,)

    call = Captured(function)
    for scale in (2.0, 2.0, 2.0, 3.0):
        (out,) = call((torch.ones(3),), (torch.full((3,), 5.0), None), scale)
        assert out.tolist() == [5 * scale] * 3
    assert calls == [2.0, 2.0, 2.0, 3.0]


def test_what_is_no_tensor_is_left_to_the_function_to_refuse() -> None:
    def function(inputs: Any, weights: Any) -> tuple[Tensor, ...]:
        raise TypeError(f"x: expected a tensor, found {type(inputs[0]).__name__}")

    with pytest.raises(TypeError, match="x: expected a tensor, found NoneType"):
        Captured(function)((None,), ())  # type: ignore[arg-type]


def product(inputs: tuple[Tensor, ...], weights: Any, scale: float = 1.0) -> tuple[Tensor]:
    return (inputs[0] @ weights[0] * scale,)


def hold(call: Captured, rows: int, weight: Tensor, *options: float) -> None:
    x = torch.randn(rows, 4)
    expected = product((x,), (weight,), *options)
    torch.testing.assert_close(call((x,), (weight,), *options), expected)


def test_the_second_call_of_a_kind_makes_a_graph_for_all_that_follow(
    imitated: list[Imitated],
) -> None:
    call, weight = Captured(product), torch.randn(4, 4)
    for made in (0, 1, 1, 1):
        hold(call, 3, weight)
        assert len(imitated) == made
    assert imitated[0].replays == 3


def test_sizes_options_and_weights_have_graphs_of_their_own(imitated: list[Imitated]) -> None:
    call, weight = Captured(product), torch.randn(4, 4)
    kinds: list[tuple[Any, ...]] = [
        (3, weight),
        (2, weight),
        (3, weight, 2.0),
        (3, weight.t()),
        (3, torch.randn(4, 4)),
    ]
    for kind in kinds * 3:
        hold(call, *kind)
    assert len(imitated) == len(kinds)


def test_the_layers_of_a_model_share_what_their_graphs_read(imitated: list[Imitated]) -> None:
    call, weights = Captured(product), [torch.randn(4, 4) for _ in range(5)]
    for _ in range(3):
        for weight in weights:
            hold(call, 3, weight)
    assert len({graph.kept[0].data_ptr() for graph in imitated}) == 1


@pytest.mark.parametrize(("limit", "value", "made"), [("MOST_GRAPHS", 2, 2), ("MOST_BYTES", 90, 1)])
def test_graphs_are_made_while_there_is_room(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch, limit: str, value: int, made: int
) -> None:
    """Three rows of four numbers take 48 bytes, and so does their product."""
    monkeypatch.setattr(captured, limit, value)
    call = Captured(product)
    weights = [torch.randn(4, 4) for _ in range(2)] + [torch.randn(4, 4)]
    for _ in range(2):
        for weight in weights:
            hold(call, 3, weight)
            hold(call, 3, weight)
    assert len(imitated) == made


def test_a_capture_that_fails_leaves_its_kind_to_the_function(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def fails(*arguments: Any) -> Any:
        attempts.append(arguments)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captured, "_capture", fails)
    call, weight = Captured(product), torch.randn(4, 4)
    for _ in range(4):
        hold(call, 3, weight)
    assert len(attempts) == 1


def test_a_tensor_of_a_class_of_its_own_is_left_to_the_function(imitated: list[Imitated]) -> None:
    class Wrapped(Tensor):
        pass

    call, weight = Captured(product), torch.randn(4, 4).as_subclass(Wrapped)
    for _ in range(3):
        hold(call, 3, weight)
    assert imitated == []


def test_inputs_that_a_function_changes_are_changed(imitated: list[Imitated]) -> None:
    def step(inputs: Any, weights: Any) -> tuple[Tensor, ...]:
        x, first, second = inputs
        first.add_(x)
        second.mul_(2)
        return (first + second,)

    call = Captured(step, written=2)
    states = torch.zeros(3), torch.ones(3)
    for turn in range(1, 6):
        (out,) = call((torch.ones(3), *states), ())
        assert [each.tolist() for each in states] == [[turn] * 3, [2**turn] * 3]
        assert out.tolist() == [turn + 2**turn] * 3
    assert [graph.replays for graph in imitated] == [4]


def test_what_graphs_take_is_free_again_with_their_function(imitated: list[Imitated]) -> None:
    call = Captured(product)
    for weight in (torch.randn(4, 4), torch.randn(4, 4)):
        hold(call, 3, weight)
        hold(call, 3, weight)
    memory = captured.MEMORY
    read = 48
    assert (memory.graphs, memory.bytes) == (2, read + 2 * 48)
    del call
    assert (memory.graphs, memory.bytes) == (0, read)


def test_a_part_that_is_launched_by_a_graph_elsewhere_does_not_wait_for_itself(
    imitated: list[Imitated],
) -> None:
    part, weight = Captured(product), torch.randn(4, 4)
    whole = Captured(part)
    for _ in range(3):
        hold(whole, 3, weight)
