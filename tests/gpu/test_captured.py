"""Calls that a CUDA graph launches: as if they had been made one by one, whatever lies around."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jetson_mamba.ops import captured, mamba_inner
from jetson_mamba.ops.captured import Captured
from jetson_mamba.ops.mamba_inner import mamba_inner_fn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


class Counted:
    """A function of two inputs and a weight, and how often Python ran it."""

    def __init__(self) -> None:
        self._calls: list[None] = []

    @property
    def calls(self) -> int:
        """A list's length: several threads may add to it."""
        return len(self._calls)

    def __call__(self, inputs: Any, weights: Any, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        """Run it."""
        self._calls.append(None)
        x, y = inputs
        return torch.mm(x, weights[0]) * scale + y, x + 1


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, device="cuda", dtype=dtype)


@pytest.fixture(autouse=True)
def without_gradients(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(captured, "MEMORY", captured.Memory())
    with torch.no_grad():
        yield


def warm(captured: Captured, function: Counted, weight: Tensor, calls: int = 3) -> None:
    for _ in range(calls):
        captured((drawn(4, 8), drawn(4, 8)), (weight,))
    # Once by itself, twice while it was captured; the third call is the graph's alone.
    assert function.calls == 3


def test_a_graph_computes_with_the_inputs_of_each_call() -> None:
    function, weight = Counted(), drawn(8, 8)
    call = Captured(function)
    warm(call, function, weight)
    results = []
    for _ in range(5):
        inputs = (drawn(4, 8), drawn(4, 8))
        results.append((call(inputs, (weight,)), Counted()(inputs, (weight,))))
    # Compared at the end: a result belongs to its caller, and no later call writes to it.
    for found, expected in results:
        for one, other in zip(found, expected):
            torch.testing.assert_close(one, other)
    assert function.calls == 3


def test_weights_are_read_at_each_call() -> None:
    function, weight = Counted(), drawn(8, 8)
    call = Captured(function)
    warm(call, function, weight)
    inputs = (drawn(4, 8), drawn(4, 8))
    weight.mul_(2)
    torch.testing.assert_close(call(inputs, (weight,))[0], Counted()(inputs, (weight,))[0])
    assert function.calls == 3
    other = drawn(8, 8)
    torch.testing.assert_close(call(inputs, (other,))[0], Counted()(inputs, (other,))[0])
    assert function.calls == 4


def test_what_decides_beside_the_tensors_is_heeded() -> None:
    function, weight = Counted(), drawn(8, 8)
    call = Captured(function)
    warm(call, function, weight)
    inputs = (drawn(4, 8), drawn(4, 8))
    for scale in (3.0, 5.0, 3.0, 5.0, 3.0, 5.0):
        expected = Counted()(inputs, (weight,), scale)
        torch.testing.assert_close(call(inputs, (weight,), scale), expected)
    # Another size and another layout are other kinds.
    for x in (drawn(6, 8), drawn(8, 4).t()):
        inputs = (x, drawn(*x.shape))
        for _ in range(3):
            torch.testing.assert_close(call(inputs, (weight,)), Counted()(inputs, (weight,)))


def test_threads_make_graphs_while_others_compute_draw_and_allocate() -> None:
    function, weight = Counted(), drawn(8, 8)
    call = Captured(function)
    wrong: list[str] = []

    def run(own_stream: bool) -> None:
        stream = torch.cuda.Stream() if own_stream else torch.cuda.default_stream()
        try:
            with torch.no_grad(), torch.cuda.stream(stream):
                for turn in range(60):
                    # A kind that no other thread has yet, every few turns.
                    inputs = (drawn(4 + turn // 6, 8), drawn(4 + turn // 6, 8))
                    found, expected = call(inputs, (weight,)), Counted()(inputs, (weight,))
                    if not torch.allclose(found[0], expected[0], rtol=1e-3, atol=1e-3):
                        wrong.append(f"own stream: {own_stream}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=run, args=(index % 2 == 0,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert all(graph is not None for graph in call._graphs.values())
    # Ten kinds on the default stream and on two others.
    assert len(call._graphs) == 30


def test_random_numbers_go_on_as_if_nothing_had_been_captured() -> None:
    def draws() -> list[Tensor]:
        torch.cuda.manual_seed(0)
        call, weight = Captured(Counted()), drawn(8, 8)
        return [call((drawn(4, 8), drawn(4, 8)), (weight,))[0] for _ in range(4)]

    captured_ones, state = draws(), torch.cuda.get_rng_state()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(captured, "MOST_ELEMENTS", 0)
        assert all(map(torch.equal, captured_ones, draws()))
    assert torch.equal(state, torch.cuda.get_rng_state())


def test_a_function_that_draws_random_numbers_is_called_each_time() -> None:
    call = Captured(lambda inputs, weights: (inputs[0] + torch.rand_like(inputs[0]),))
    x = drawn(4, 8)
    results = [call((x,), ())[0] for _ in range(5)]
    assert all(not torch.equal(one, other) for one, other in zip(results, results[1:]))
    assert list(call._graphs.values()) == [None]
    # The generator is free for a capture of the user's.
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = torch.rand_like(x)
    graph.replay()
    first = out.clone()
    graph.replay()
    assert not torch.equal(first, out)


def test_what_a_graph_changes_of_its_inputs_is_changed() -> None:
    def step(inputs: Any, weights: Any) -> tuple[Tensor]:
        x, first, second = inputs
        first.copy_(first.roll(1, -1) + x)
        second.mul_(weights[0]).add_(first)
        return (second * 2,)

    call, weight = Captured(step, written=2), drawn(8)
    states = [drawn(8, 4).t(), drawn(4, 8)]
    others = [state.clone() for state in states]
    for _ in range(6):
        x = drawn(4, 8)
        found, expected = call((x, *states), (weight,)), step((x, *others), (weight,))
        assert torch.equal(found[0], expected[0])
        assert all(map(torch.equal, states, others))
    assert [graph is not None for graph in call._graphs.values()] == [True]


def test_memory_is_free_for_others_after_a_graph_is_gone() -> None:
    def bytes_in_use() -> int:
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    weight = drawn(8, 8)
    before = None
    for _ in range(3):
        call = Captured(Counted())
        warm(call, call._function, weight)  # type: ignore[arg-type]
        del call
        before = bytes_in_use() if before is None else before
        assert bytes_in_use() == before


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_a_graph_runs_on_the_device_of_its_inputs() -> None:
    function = Counted()
    call, weight = Captured(function), drawn(8, 8).to("cuda:1")
    for _ in range(4):
        inputs = (drawn(4, 8).to("cuda:1"), drawn(4, 8).to("cuda:1"))
        torch.testing.assert_close(call(inputs, (weight,)), Counted()(inputs, (weight,)))
    assert function.calls == 3


def test_inside_a_capture_of_the_user_the_kernels_themselves_are_captured() -> None:
    function, weight = Counted(), drawn(8, 8)
    call = Captured(function)
    warm(call, function, weight)
    inputs = (drawn(4, 8), drawn(4, 8))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call(inputs, (weight,))
    inputs[0].normal_()
    graph.replay()
    torch.testing.assert_close(found, Counted()(inputs, (weight,)))


def test_whoever_watches_sees_all_of_it() -> None:
    function, weight = Counted(), drawn(8, 8)
    call = Captured(function)
    warm(call, function, weight)
    inputs = (drawn(4, 8), drawn(4, 8))
    expected = Counted()(inputs, (weight,))

    sys.settrace(lambda *_: None)
    try:
        torch.testing.assert_close(call(inputs, (weight,)), expected)
    finally:
        sys.settrace(None)
    assert function.calls == 4

    with FlopCounterMode(display=False) as counted:
        torch.testing.assert_close(call(inputs, (weight,)), expected)
    assert counted.get_total_flops() == 2 * 4 * 8 * 8

    mapped = torch.func.vmap(lambda x, y: call((x, y), (weight,)))
    stacked = [torch.stack([x, x + 1]) for x in inputs]
    found = mapped(*stacked)
    torch.testing.assert_close([each[0] for each in found], list(expected))

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(lambda x, y: call((x, y), (weight,)), inputs)
    others = (drawn(4, 8), drawn(4, 8))
    torch.testing.assert_close(traced(*others), Counted()(others, (weight,)))


def test_slices_and_expanded_inputs_are_read_without_their_gaps() -> None:
    function, weight = Counted(), drawn(8, 8)
    call = Captured(function)
    for _ in range(4):
        inputs = (drawn(4000, 8)[::1000], drawn(4, 1).expand(4, 8))
        torch.testing.assert_close(call(inputs, (weight,)), Counted()(inputs, (weight,)))
    assert function.calls == 3
    assert captured.MEMORY.bytes < 1 << 20


def test_a_function_that_cannot_be_captured_is_called_as_it_is() -> None:
    class Reads(Counted):
        def __call__(self, inputs: Any, weights: Any, scale: float = 1.0) -> Any:
            """Run it."""
            out = super().__call__(inputs, weights, scale)
            assert float(out[0].sum()) == float(out[0].sum())  # the CPU waits for a number
            return out

    call, weight = Captured(Reads()), drawn(8, 8)
    for _ in range(4):
        inputs = (drawn(4, 8), drawn(4, 8))
        torch.testing.assert_close(call(inputs, (weight,)), Counted()(inputs, (weight,)))


def test_errors_are_those_of_the_function() -> None:
    call = Captured(Counted())
    for _ in range(3):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            call((drawn(4, 8), drawn(4, 8)), (drawn(7, 8),))


def test_no_more_graphs_are_made_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "MOST_GRAPHS", 4)
    call, weight = Captured(Counted()), drawn(8, 8)
    for rows in range(1, 12):
        inputs = (drawn(rows, 8), drawn(rows, 8))
        for _ in range(3):
            torch.testing.assert_close(call(inputs, (weight,)), Counted()(inputs, (weight,)))
    assert len(call._graphs) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("inference_mode", [False, True])
def test_a_block_is_computed_by_a_graph_as_it_is_without(
    dtype: torch.dtype, autocast: bool, inference_mode: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    dim, seqlen, rank, dstate = 128, 70, 8, 16
    weights: dict[str, Any] = {
        "conv1d_weight": drawn(dim, 1, 4, dtype=dtype),
        "conv1d_bias": drawn(dim, dtype=dtype),
        "x_proj_weight": drawn(rank + 2 * dstate, dim, dtype=dtype) / 11,
        "delta_proj_weight": drawn(dim, rank, dtype=dtype),
        "out_proj_weight": drawn(64, dim, dtype=dtype).requires_grad_(),
        "out_proj_bias": None,
    }
    function = Captured(mamba_inner._from_parts)
    monkeypatch.setattr(mamba_inner, "_CAPTURED", function)
    signal_dtype = torch.bfloat16 if autocast else dtype
    context = torch.inference_mode() if inference_mode else torch.no_grad()
    with context, torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        for _ in range(4):
            given: dict[str, Any] = {
                "xz": drawn(2, 2 * dim, seqlen, dtype=signal_dtype),
                "A": -torch.rand(dim, dstate, device="cuda"),
                "D": drawn(dim),
                "delta_bias": drawn(dim),
            }
            with monkeypatch.context() as patch:
                patch.setattr(captured, "MOST_ELEMENTS", 0)
                plain = mamba_inner_fn(**given, **weights)
            graphed = mamba_inner_fn(**given, **weights)
            assert graphed.dtype == plain.dtype == signal_dtype
            assert graphed.is_inference() == inference_mode
            torch.testing.assert_close(graphed, plain)
    assert [graph is not None for graph in function._graphs.values()] == [True]
