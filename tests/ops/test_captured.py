"""Which calls a CUDA graph launches, with a stand-in for the graph; ``tests/gpu`` has real ones."""

from __future__ import annotations

import threading
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops import captured
from jetson_mamba.ops.captured import Captured


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


class Imitated:
    """Computes as a graph would: on the memory that it was made for, whatever the call gave."""

    made: list[Imitated]

    def __init__(self, function: Any, kept: Any, inputs: Any, weights: Any, options: Any) -> None:
        self.kept = kept
        self._call: Callable[[], tuple[Tensor, ...]] = lambda: function(kept, weights, *options)
        self.results = self._call()
        self.replays = 0
        Imitated.made.append(self)

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As a graph does it."""
        self.replays += 1
        for target, source in zip(self.kept, inputs):
            target.copy_(source)
        return tuple(result.clone() for result in self._call())


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    Imitated.made = []
    monkeypatch.setattr(captured, "_capture", Imitated)
    monkeypatch.setattr(captured, "_stream", lambda first: 0)
    monkeypatch.setattr(threading, "active_count", lambda: 1)
    yield


def product(inputs: tuple[Tensor, ...], weights: Any, scale: float = 1.0) -> tuple[Tensor]:
    return (inputs[0] @ weights[0] * scale,)


def hold(call: Captured, rows: int, weight: Tensor, *options: float) -> None:
    x = torch.randn(rows, 4)
    expected = product((x,), (weight,), *options)
    torch.testing.assert_close(call((x,), (weight,), *options), expected)


def test_the_second_call_of_a_kind_makes_a_graph_for_all_that_follow(imitated: None) -> None:
    call, weight = Captured(product), torch.randn(4, 4)
    for made in (0, 1, 1, 1):
        hold(call, 3, weight)
        assert len(Imitated.made) == made
    assert Imitated.made[0].replays == 3


def test_sizes_options_and_weights_have_graphs_of_their_own(imitated: None) -> None:
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
    assert len(Imitated.made) == len(kinds)


def test_the_layers_of_a_model_share_what_their_graphs_read(imitated: None) -> None:
    call, weights = Captured(product), [torch.randn(4, 4) for _ in range(5)]
    for _ in range(3):
        for weight in weights:
            hold(call, 3, weight)
    assert len({graph.kept[0].data_ptr() for graph in Imitated.made}) == 1


@pytest.mark.parametrize(("limit", "value", "made"), [("MOST_GRAPHS", 2, 2), ("MOST_BYTES", 90, 1)])
def test_graphs_are_made_while_there_is_room(
    imitated: None, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, made: int
) -> None:
    """Three rows of four numbers take 48 bytes, and so does their product."""
    monkeypatch.setattr(captured, limit, value)
    call = Captured(product)
    weights = [torch.randn(4, 4) for _ in range(2)] + [torch.randn(4, 4)]
    for _ in range(2):
        for weight in weights:
            hold(call, 3, weight)
            hold(call, 3, weight)
    assert len(Imitated.made) == made


def test_none_is_made_beside_other_threads(imitated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "active_count", lambda: 2)
    call, weight = Captured(product), torch.randn(4, 4)
    for _ in range(3):
        hold(call, 3, weight)
    assert Imitated.made == []


def test_a_capture_that_fails_leaves_its_kind_to_the_function(
    imitated: None, monkeypatch: pytest.MonkeyPatch
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


def test_a_tensor_of_a_class_of_its_own_is_left_to_the_function(imitated: None) -> None:
    class Wrapped(Tensor):
        pass

    call, weight = Captured(product), torch.randn(4, 4).as_subclass(Wrapped)
    for _ in range(3):
        hold(call, 3, weight)
    assert Imitated.made == []
