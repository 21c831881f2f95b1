"""What is done around a capture, on a device that is imitated.

So is the driver: a graph here is the list of what a function did while it was captured, which a
launch does again.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any, Callable, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba.replay import captured, cuda_graph
from jetson_mamba.replay.captured import Captured

is_on_gpu, is_small = captured.is_on_gpu, captured.is_small
# Tensors of a CPU say this of their device.
DEVICE, CURRENT, ASIDE = -1, 70, 71


class Device:
    """A GPU with a current stream; ``events`` are what happened on it, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.capturing: list[Callable[[], object]] | None = None
        self.current = DEVICE

    def stream(self, number: int) -> Any:
        """One of it."""
        return SimpleNamespace(
            cuda_stream=number,
            device_index=DEVICE,
            wait_stream=lambda other: self.events.append(("wait", number, other.cuda_stream)),
        )

    def do(self, work: Callable[[], object]) -> None:
        """Launch something: while a graph is captured it is only noted."""
        if self.capturing is None:
            work()
        else:
            self.capturing.append(work)

    @contextmanager
    def captured(self, pool: object) -> Iterator[Any]:
        """Note what is launched meanwhile, for a graph."""
        steps: list[Callable[[], object]] = []
        self.capturing = steps
        yield SimpleNamespace(launch=lambda stream: self.launch(steps, stream))
        self.events.append(("captured", len(steps)))
        self.capturing = None

    def launch(self, steps: list[Callable[[], object]], stream: int) -> None:
        """Do what was captured."""
        self.events.append(("launch", stream))
        for step in steps:
            step()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    found = Device()

    def at(entered: str) -> Callable[[Any], Any]:
        def context(of: Any) -> Any:
            found.events.append((entered, getattr(of, "cuda_stream", of)))
            return nullcontext()

        return context

    monkeypatch.setattr(torch.cuda, "device", at("device"))
    monkeypatch.setattr(torch.cuda, "stream", at("stream"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: found.stream(CURRENT))
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: found.current, raising=False)
    monkeypatch.setattr(cuda_graph, "stream", lambda: found.stream(ASIDE))
    monkeypatch.setattr(cuda_graph, "Pool", lambda index: SimpleNamespace(index=index))
    monkeypatch.setattr(cuda_graph, "captured", found.captured)
    monkeypatch.setattr(captured, "_stream", lambda first: CURRENT)
    for name, value in (("_places", {}), ("_aside", set()), ("_pools", {})):
        monkeypatch.setattr(captured, name, value)
    monkeypatch.setattr(captured, "MEMORY", captured.Memory())
    return found


def sum_of(device: Device) -> Any:
    """A function of any inputs and one weight; the last input is counted up where it is written."""

    def function(inputs: tuple[Tensor, ...], weights: Any, written: bool = False) -> Any:
        out = torch.empty(inputs[0].shape, dtype=torch.float64)

        def add() -> None:
            out.zero_()
            for each in inputs:
                out.add_(each.to(torch.float64))
            out.mul_(weights[0])

        device.do(add)
        if written:
            device.do(lambda: inputs[-1].add_(1))
        return (out,)

    return function


KINDS = {
    "one": (torch.float32,),
    "of one dtype": (torch.float32, torch.float32),
    "of several": (torch.float32, torch.float16, torch.float32),
}


def drawn(dtypes: tuple[torch.dtype, ...], gaps: bool = False) -> tuple[Tensor, ...]:
    numbers = [torch.randint(-9, 9, (3, 8)).to(dtype) for dtype in dtypes]
    return tuple(each[:, ::2] if gaps else each[:, :4] for each in numbers)


def total(inputs: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([each.double() for each in inputs]).sum(0)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_launch_computes_of_what_it_is_given(kind: str, gaps: bool, device: Device) -> None:
    call, weight = Captured(sum_of(device)), torch.full((), 2.0, dtype=torch.float64)
    before = None
    for turn in range(5):
        inputs = drawn(KINDS[kind], gaps)
        (out,) = call(inputs, (weight,))
        assert torch.equal(out, 2 * total(inputs))
        # Nor is it changed by the call that comes next.
        if before is not None:
            assert torch.equal(before[0], before[1])
        before = (out, out.clone())
        assert ("launch", CURRENT) in device.events or turn == 0
    assert [name for name, *_ in device.events].count("captured") == 1


@pytest.mark.parametrize("kind", ["one", "of one dtype", "of several"])
def test_what_a_function_writes_is_written_once_by_each_call(kind: str, device: Device) -> None:
    call = Captured(sum_of(device), written=1)
    weight, state = torch.ones((), dtype=torch.float64), torch.zeros(3, 4)
    for turn in range(1, 6):
        inputs = (*drawn(KINDS[kind]), state)
        expected = total(inputs)
        (out,) = call(inputs, (weight,), True)
        assert torch.equal(out, expected)
        assert state.tolist() == [[turn] * 4] * 3
    assert ("captured", 2) in device.events


def test_a_graph_is_captured_aside_and_tried_there_between_what_comes_before_and_after(
    device: Device,
) -> None:
    call, weight = Captured(sum_of(device)), torch.ones((), dtype=torch.float64)
    for _ in range(2):
        call(drawn(KINDS["one"]), (weight,))
    assert device.events == [
        ("device", torch.device("cpu")),
        ("wait", ASIDE, CURRENT),
        ("stream", ASIDE),
        ("captured", 1),
        ("launch", ASIDE),
        ("wait", CURRENT, ASIDE),
        ("launch", CURRENT),
    ]
    assert captured._aside == {ASIDE} and list(captured._places) == [(DEVICE, CURRENT)]
    # A further graph has the same place and the same memory.
    pools = list(captured._pools.values())
    for _ in range(2):
        call(drawn(KINDS["one"]), (weight.clone(),))
    assert captured._aside == {ASIDE} and list(captured._pools.values()) == pools


def test_a_launch_is_made_while_the_device_of_its_inputs_is_current(device: Device) -> None:
    call, weight = Captured(sum_of(device)), torch.ones((), dtype=torch.float64)
    for _ in range(2):
        call(drawn(KINDS["one"]), (weight,))
    device.current = 3
    device.events.clear()
    inputs = drawn(KINDS["one"])
    (out,) = call(inputs, (weight,))
    assert device.events == [("device", DEVICE), ("launch", CURRENT)]
    assert torch.equal(out, inputs[0].double())


@pytest.mark.parametrize("of", ["result", "what is written"])
def test_a_graph_that_gives_other_results_serves_no_call(of: str, device: Device) -> None:
    function = sum_of(device)

    def counting(inputs: tuple[Tensor, ...], weights: Any) -> Any:
        results = function(inputs, weights)
        # Of what is captured, the last step is done with what Python has now.
        number = float(device.capturing is not None)
        device.do(lambda: (inputs[1] if of == "what is written" else results[0]).add_(number))
        return results

    call, weight = Captured(counting, written=1), torch.ones((), dtype=torch.float64)
    state = torch.zeros(3, 4)
    for _ in range(4):
        (x,) = drawn(KINDS["one"])
        (out,) = call((x, state), (weight,))
        assert torch.equal(out, x.double()) and not state.any()
    assert ("launch", CURRENT) not in device.events
    assert [name for name, *_ in device.events].count("captured") == 1


def test_a_small_call_is_a_plain_tensor_on_a_gpu_of_no_more_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Own(Tensor):
        pass

    x = torch.zeros(2, 3)
    assert not is_on_gpu(x) and not is_small(x, 6)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    assert is_on_gpu(x) is True
    assert [is_small(x, most) for most in (5, 6, 7)] == [False, True, True]
    for other in (x.as_subclass(Own), torch.nn.Parameter(x), None):
        assert not is_on_gpu(other) and not is_small(other, 6)
