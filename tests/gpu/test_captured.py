"""Calls that a CUDA graph launches: as if they had been made one by one, whatever lies around."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from jetson_mamba.ops import causal_conv1d, selective_scan
from jetson_mamba.ops.mamba_inner import mamba_inner_fn
from jetson_mamba.ops.mamba_inner import op as mamba_inner
from jetson_mamba.replay import captured
from jetson_mamba.replay.captured import Captured

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


def test_threads_make_graphs_while_others_compute_draw_and_allocate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As many streams have graphs as may; those of other tests are left aside.
    monkeypatch.setattr(captured, "_places", {})
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
    # Ten kinds on the default stream and on two others.
    assert len(call.graphs()) == 30


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
    assert call.graphs() == []
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
    assert len(call.graphs()) == 1


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


def reserved() -> int:
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


@pytest.mark.parametrize("of", ["function", "weight"])
def test_what_graphs_hold_goes_back_to_the_gpu_with_what_they_are_made_of(of: str) -> None:
    """Also the pool between, of which a graph that goes gives its share back."""
    rows = 1 << 14
    first = Captured(Counted())
    warm(first, first._function, drawn(8, 8))  # type: ignore[arg-type]
    del first
    before = reserved()
    for _ in range(3):
        call, weight = Captured(Counted()), drawn(64, 64)
        for _ in range(4):
            inputs = (drawn(rows, 64), drawn(rows, 64))
            found = call(inputs, (weight,))
        torch.testing.assert_close(found, Counted()(inputs, (weight,)))
        assert len(call.graphs()) == 1
        del inputs, found
        assert reserved() >= before + 4 * rows * 64
        if of == "function":
            del call
        else:
            del weight
        assert captured.MEMORY.graphs == captured.MEMORY.bytes == 0
        # The workspace of cuBLAS aside is kept, and was there before.
        assert reserved() <= before + (2 << 20)
        call = weight = None  # type: ignore[assignment]


def test_a_graph_goes_while_it_runs_and_another_takes_its_memory() -> None:
    for turn in range(20):
        call, weight = Captured(Counted()), drawn(256, 256)
        for _ in range(4):
            inputs = (drawn(2048, 256), drawn(2048, 256))
            found = call(inputs, (weight,))
        expected = Counted()(inputs, (weight,))
        del call
        torch.testing.assert_close(found, expected, msg=f"turn {turn}")


def test_settings_have_graphs_of_their_own() -> None:
    call, weight = Captured(Counted()), drawn(512, 512)
    inputs = (drawn(64, 512), drawn(64, 512))
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    try:
        for allowed in (True, False, True, False, True, False):
            matmul.allow_tf32 = allowed
            for _ in range(3):
                found, expected = call(inputs, (weight,)), Counted()(inputs, (weight,))
                assert torch.equal(found[0], expected[0])
    finally:
        matmul.allow_tf32 = before
    assert len(call.graphs()) == 2


def test_the_first_call_of_an_op_in_a_capture_of_the_user_leaves_the_capture_whole() -> None:
    for op in (causal_conv1d.OP, selective_scan.OP):
        op._remembered.clear()
        op._put_into_force(None)
    x, weight = drawn(1, 8, 32), drawn(8, 4)
    scan: tuple[Any, ...] = (drawn(1, 8, 32), drawn(1, 8, 32), -torch.rand(8, 4, device="cuda"))
    scan += (drawn(1, 1, 4, 32), drawn(1, 1, 4, 32))

    def call() -> tuple[Any, ...]:
        return causal_conv1d.causal_conv1d_fn(x, weight), selective_scan.selective_scan_fn(*scan)

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = call()
    assert not causal_conv1d.OP.choices() and not selective_scan.OP.choices()
    x.normal_()
    graph.replay()
    torch.testing.assert_close(found, call())
    assert causal_conv1d.OP.choices() and selective_scan.OP.choices()


LEAVES_GRAPHS = """
import os, sys, torch
from jetson_mamba.replay.captured import Captured, MEMORY
call = Captured(lambda inputs, weights: (inputs[0] @ weights[0],))
weight = torch.randn(8, 8, device="cuda")
with torch.no_grad():
    for _ in range(4):
        call((torch.randn(4, 8, device="cuda"),), (weight,))
assert MEMORY.graphs == 1
if "fork" in sys.argv:
    child = os.fork()
    if child == 0:
        assert MEMORY.graphs == 0
        try:
            torch.ones(1, device="cuda")
        except RuntimeError as error:
            assert "forked subprocess" in str(error)
            sys.exit(0)
        sys.exit(1)
    assert os.waitpid(child, 0)[1] == 0
    call((torch.randn(4, 8, device="cuda"),), (weight,))
    torch.cuda.synchronize()
"""


@pytest.mark.parametrize("how", ["exit", "fork"])
def test_a_process_ends_in_silence_with_graphs_left(how: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", LEAVES_GRAPHS, how]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_every_gpu_has_graphs_on_as_many_streams() -> None:
    for device in range(torch.cuda.device_count()):
        with torch.cuda.device(device):
            for stream in [torch.cuda.Stream() for _ in range(captured.MOST_STREAMS - 1)]:
                with torch.cuda.stream(stream):
                    call, weight = Captured(Counted()), drawn(8, 8)
                    warm(call, call._function, weight)  # type: ignore[arg-type]


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
    assert len(call.graphs()) == 4


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
    assert len(function.graphs()) == 1
