"""Which calls a CUDA graph launches, with a stand-in for the graph; ``tests/gpu`` has real ones."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.replay import captured
from jetson_mamba.replay.captured import Captured
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


def total(
    inputs: tuple[Tensor, ...], weights: tuple[Tensor, ...], *options: float
) -> tuple[Tensor, ...]:
    return (inputs[0].double() + weights[0].double().sum(),)


def alike(tensor: Tensor) -> list[Tensor]:
    """Tensors that begin at the same place and differ in one respect."""
    return [
        tensor,
        tensor.view(torch.int32),
        tensor.t(),
        tensor[:2],
        torch.nn.Parameter(tensor),
        tensor.clone(),
    ]


@pytest.mark.parametrize("role", ["weight", "input"])
def test_a_graph_serves_what_is_alike_in_every_respect(role: str, imitated: list[Imitated]) -> None:
    call, other = Captured(total), torch.randn(4, 4)
    kinds = alike(torch.randn(4, 4))
    for _ in range(3):
        for each in kinds:
            x, weight = (each, other) if role == "input" else (other, each)
            with torch.no_grad():
                torch.testing.assert_close(call((x,), (weight,)), total((x,), (weight,)))
    # An input is copied to where a graph reads it; a weight is read where it is.
    same = {"input": 1, "weight": 0}[role]
    assert len(imitated) == len(kinds) - same


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


@pytest.mark.parametrize(("limit", "value"), [("MOST_GRAPHS", 2), ("MOST_BYTES", 140)])
def test_a_graph_that_is_idle_goes_for_one_that_is_needed(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(captured, limit, value)
    monkeypatch.setattr(captured, "IDLE_CALLS", 20)
    call = Captured(product)
    kept, idle, wanted = (torch.randn(4, 4) for _ in range(3))
    for weight in (kept, kept, idle, idle, idle):
        hold(call, 3, weight)
    made = len(imitated)
    for _ in range(30):
        hold(call, 3, kept)
        hold(call, 3, wanted)
    assert len(imitated) == made + 1
    replays = imitated[-1].replays
    hold(call, 3, wanted)
    assert imitated[-1].replays == replays + 1
    # What was idle is now met anew; what is used goes for nothing.
    for _ in range(5):
        for weight in (idle, kept, wanted):
            hold(call, 3, weight)
    assert len(imitated) == made + 1
    assert captured.MEMORY.graphs == 2


@pytest.mark.parametrize("kinds", [5, 7, 12, 19, 21, 30])
def test_a_program_that_goes_round_through_too_many_kinds_makes_no_graph_at_each_call(
    kinds: int, imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MOST_GRAPHS", 4), ("MOST_MET", 16), ("IDLE_CALLS", 64)):
        monkeypatch.setattr(captured, name, value)
    monkeypatch.setattr(captured, "MEMORY", captured.Memory())
    weights = [torch.randn(4, 4) for _ in range(kinds)]
    call = Captured(product)
    for _ in range(20):
        for weight in weights:
            hold(call, 3, weight)
    assert len(imitated) <= 4


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


def held(memory: captured.Memory) -> tuple[int, int]:
    return memory.graphs, memory.bytes


@pytest.mark.parametrize("of", ["function", "weights", "memory of the weights"])
def test_what_graphs_take_is_free_again_with_what_they_are_made_of(
    of: str, imitated: list[Imitated]
) -> None:
    """Each reads 48 bytes, which they share, and writes as many."""
    call, weights = Captured(product), [torch.randn(4, 4), torch.randn(4, 4)]
    for weight in weights:
        hold(call, 3, weight)
        hold(call, 3, weight)
    memory = captured.MEMORY
    assert held(memory) == (2, 48 + 2 * 48)
    assert len(memory.read) == 1
    imitated.clear()
    if of == "function":
        del call
    elif of == "weights":
        del weight
        del weights[0]
        gc.collect()
        assert held(memory) == (1, 48 + 48)
        weights.clear()
    else:
        for weight in weights:
            weight.data = torch.randn(4, 4)
    gc.collect()
    assert held(memory) == (0, 0)
    assert len(memory.read) == 0


def test_a_graph_that_reads_a_view_of_a_weight_lasts_as_the_weight_does(
    imitated: list[Imitated],
) -> None:
    call, weight = Captured(product), nn.Parameter(torch.randn(4, 4))
    with torch.no_grad():
        for _ in range(4):
            hold(call, 3, weight.unsqueeze(0).squeeze(0))
            gc.collect()
    assert [graph.replays for graph in imitated] == [3]
    imitated.clear()
    del weight
    gc.collect()
    assert held(captured.MEMORY) == (0, 0)


def test_an_error_that_may_pass_does_not_keep_its_kind_from_a_graph(
    imitated: list[Imitated], monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts = []

    def lacks_room(*arguments: Any) -> Any:
        attempts.append(arguments)
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB")

    call, weight = Captured(product), torch.randn(4, 4)
    with monkeypatch.context() as patch:
        patch.setattr(captured, "_capture", lacks_room)
        for _ in range(2):
            hold(call, 3, weight)
    assert len(attempts) == 1
    for _ in range(3):
        hold(call, 3, weight)
    assert [graph.replays for graph in imitated] == [2]


def test_each_device_has_streams_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {(0, stream): None for stream in range(captured.MOST_STREAMS)}
    monkeypatch.setattr(captured, "_places", taken)
    first, seventh = torch.device("cuda", 0), torch.device("cuda", 7)
    assert captured._has_place(first, 0)
    assert not captured._has_place(first, captured.MOST_STREAMS)
    assert captured._has_place(seventh, 0)


def test_what_is_set_elsewhere_has_a_graph_of_its_own(imitated: list[Imitated]) -> None:
    call, weight = Captured(product), torch.randn(4, 4)
    for _ in range(2):
        hold(call, 3, weight)
    for made in (2, 3, 4):
        with [
            torch.autocast("cpu", torch.bfloat16),
            torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
            torch.backends.cudnn.flags(enabled=torch.backends.cudnn.enabled, deterministic=True),
        ][made - 2]:
            for _ in range(3):
                hold(call, 3, weight)
        assert len(imitated) == made
    hold(call, 3, weight)
    assert len(imitated) == 4


def test_a_graph_is_made_without_what_autocast_keeps(imitated: list[Imitated]) -> None:
    kept: list[bool] = []

    def function(inputs: Any, weights: Any) -> tuple[Tensor]:
        kept.append(torch.is_autocast_cache_enabled())
        return (inputs[0] @ weights[0],)

    call, weight = Captured(function), torch.randn(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        for _ in range(2):
            call((torch.randn(3, 4),), (weight,))
    assert kept[:2] == [True, False]


def test_a_part_that_is_launched_by_a_graph_elsewhere_does_not_wait_for_itself(
    imitated: list[Imitated],
) -> None:
    part, weight = Captured(product), torch.randn(4, 4)
    whole = Captured(part)
    for _ in range(3):
        hold(whole, 3, weight)
