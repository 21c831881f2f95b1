"""What is asked of the driver for a graph. The driver is imitated here, and its errors are said."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import nullcontext
from ctypes import c_char_p, c_void_p
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jetson_mamba.replay import cuda_graph

HANDLE, STREAM, DEVICE = (0, 5), 7, 1
# A pool begins with a part of its own, and gives it back at its end.
MADE, ENDED = ["begin", "end"], ["release"]
CAPTURED = ["begin", "end", "release"]


class Driver:
    """Notes what is called; a function named in ``fails`` returns that error."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fails: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name == "cuGetErrorName":
                arguments[1].value = b"CUDA_ERROR_STREAM_CAPTURE_INVALIDATED"
            elif name == "cuStreamEndCapture" and not self.fails:
                arguments[1].value = 11
            elif name == "cuGraphInstantiateWithFlags":
                arguments[0].value = 12
            return self.fails.get(name, 0)

        return call


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    monkeypatch.setattr(cuda_graph, "_driver", lambda: driver)
    current = SimpleNamespace(cuda_stream=STREAM, device_index=DEVICE)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: HANDLE)
    return driver


@pytest.fixture(params=["torch 2.8", "torch 2.2", "torch 2.1"])
def pools(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the allocator was told, by a torch of each way to tell it."""
    told: list[tuple[Any, ...]] = []
    later = "_cuda_beginAllocateCurrentThreadToPool"
    begin, end = "_cuda_beginAllocateCurrentStreamToPool", "_cuda_endAllocateCurrentStreamToPool"
    monkeypatch.delattr(torch._C, later, raising=False)
    if request.param == "torch 2.8":
        begin, end = later, "_cuda_endAllocateToPool"

    def ended(device: int, pool: Any) -> None:
        told.append(("end", device, pool))

    def ended_in_2_1(device: int) -> None:
        told.append(("end", device, HANDLE))

    monkeypatch.setattr(
        torch._C, begin, lambda *given: told.append(("begin", *given)), raising=False
    )
    final = ended_in_2_1 if request.param == "torch 2.1" else ended
    monkeypatch.setattr(torch._C, end, final, raising=False)
    release = "_cuda_releasePool"
    monkeypatch.setattr(
        torch._C, release, lambda *given: told.append(("release", *given)), raising=False
    )
    return told


def verbs(told: list[tuple[Any, ...]]) -> list[str]:
    gc.collect()
    assert {each[1:] for each in told} <= {(DEVICE, HANDLE)}
    return [each[0] for each in told]


def test_a_graph_is_captured_launched_and_given_back(
    driver: Driver, pools: list[tuple[Any, ...]]
) -> None:
    with cuda_graph.captured(cuda_graph.Pool(DEVICE)) as graph:
        assert driver.calls == ["cuStreamBeginCapture_v2"]
        assert verbs(pools) == [*MADE, "begin"]
    assert verbs(pools) == [*MADE, *CAPTURED]
    assert driver.calls[1:] == ["cuStreamEndCapture", "cuGraphInstantiateWithFlags"]
    graph.launch(STREAM)
    assert driver.calls[3:] == ["cuGraphLaunch"]
    del graph
    # The pool is gone with its last graph.
    assert verbs(pools) == [*MADE, *CAPTURED, *ENDED]
    assert driver.calls[4:] == ["cuGraphExecDestroy", "cuGraphDestroy"]


def test_a_pool_lasts_as_long_as_one_of_its_graphs(
    driver: Driver, pools: list[tuple[Any, ...]]
) -> None:
    pool, graphs = cuda_graph.Pool(DEVICE), []
    for _ in range(2):
        with cuda_graph.captured(pool) as graph:
            graphs.append(graph)
    del pool, graph
    graphs.pop()
    assert verbs(pools) == [*MADE, *CAPTURED * 2]
    graphs.pop()
    assert verbs(pools) == [*MADE, *CAPTURED * 2, *ENDED]


def test_a_torch_that_releases_no_pool_keeps_it(
    driver: Driver, pools: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch._C, "_cuda_releasePool")
    with cuda_graph.captured(cuda_graph.Pool(DEVICE)) as graph:
        pass
    del graph
    assert verbs(pools) == [*MADE, "begin", "end"]


def test_a_block_that_fails_ends_the_capture_and_raises_its_own_error(
    driver: Driver, pools: list[tuple[Any, ...]]
) -> None:
    pool = cuda_graph.Pool(DEVICE)
    with pytest.raises(KeyError, match="own"), cuda_graph.captured(pool):
        raise KeyError("own")
    assert driver.calls == ["cuStreamBeginCapture_v2", "cuStreamEndCapture"]
    assert verbs(pools) == [*MADE, *CAPTURED]


@pytest.mark.parametrize("function", ["cuStreamBeginCapture_v2", "cuStreamEndCapture"])
def test_an_error_of_the_driver_is_named(
    function: str, driver: Driver, pools: list[tuple[Any, ...]]
) -> None:
    driver.fails[function] = 901
    expected = rf"{function}: CUDA_ERROR_STREAM_CAPTURE_INVALIDATED \(901\)"
    pool = cuda_graph.Pool(DEVICE)
    with pytest.raises(RuntimeError, match=expected), cuda_graph.captured(pool):
        pass
    assert verbs(pools) == [*MADE, *CAPTURED]


def test_a_launch_that_fails_says_so(driver: Driver, pools: list[tuple[Any, ...]]) -> None:
    driver.fails["cuGraphLaunch"] = 1
    with pytest.raises(RuntimeError, match="cuGraphLaunch: "):
        cuda_graph.Graph(cuda_graph.Pool(DEVICE)).launch(STREAM)


def test_without_a_driver_the_error_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(RuntimeError, match=r"a driver of CUDA 11\.4 or later \(libcuda\.so\.1: "):
        cuda_graph._driver.__wrapped__()


def test_argument_types_are_set_on_a_handle_of_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace(**{name: SimpleNamespace() for name in cuda_graph._FUNCTIONS})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert cuda_graph._driver.__wrapped__() is library
    assert library.cuGraphLaunch.argtypes == (c_void_p, c_void_p)
    assert library.cuGetErrorName.argtypes[1]._type_ is c_char_p


@pytest.mark.parametrize("ended", ["no driver", "finalizing", "another process"])
def test_a_graph_ends_without_the_driver_where_that_is_not_there(
    ended: str, driver: Driver, pools: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error in a finalizer is a warning of pytest's, and those are errors."""
    pool = cuda_graph.Pool(DEVICE)
    with cuda_graph.captured(pool) as graph:
        pass
    if ended == "no driver":

        def missing() -> Any:
            raise RuntimeError("CUDA graphs need a driver of CUDA 11.4 or later")

        monkeypatch.setattr(cuda_graph, "_driver", missing)
        with pytest.raises(RuntimeError, match="need a driver"):
            cuda_graph.Graph(pool)
    elif ended == "finalizing":
        monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    else:
        monkeypatch.setattr(os, "getpid", lambda: -1)
    del graph, pool
    found = verbs(pools)
    assert ("cuGraphExecDestroy" in driver.calls) == (ended == "no driver")
    assert (found[-2:] == ["release", "release"]) == (ended == "no driver")


def test_a_stream_of_its_own_does_not_wait_for_the_default_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Any] = []

    def create(handle: c_void_p, flags: int) -> int:
        asked.append(flags)
        handle.value = 77
        return 0

    monkeypatch.setattr(cuda_graph, "_driver", lambda: SimpleNamespace(cuStreamCreate=create))
    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda handle: ("stream", handle))
    assert cuda_graph.stream() == ("stream", 77)
    assert asked == [1]


def test_a_capture_is_this_threads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others may go on allocating; and the graph is launched on the stream that is asked for."""
    calls: list[tuple[Any, ...]] = []

    def noted(name: str, gives: int | None = None) -> Any:
        def call(*given: Any) -> int:
            calls.append((name, *(getattr(each, "value", each) for each in given)))
            if gives is not None:
                (given[0] if name == "instantiate" else given[1]).value = gives
            return 0

        return call

    driver = SimpleNamespace(
        cuStreamBeginCapture_v2=noted("begin"),
        cuStreamEndCapture=noted("end", 11),
        cuGraphInstantiateWithFlags=noted("instantiate", 12),
        cuGraphLaunch=noted("launch"),
        cuGraphExecDestroy=noted("destroy executable"),
        cuGraphDestroy=noted("destroy graph"),
    )
    monkeypatch.setattr(cuda_graph, "_driver", lambda: driver)
    current = SimpleNamespace(cuda_stream=STREAM, device_index=DEVICE)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: current)

    class Pool:
        allocating = staticmethod(nullcontext)

    with cuda_graph.captured(Pool()) as graph:  # type: ignore[arg-type]
        pass
    graph.launch(9)
    del graph
    assert calls == [
        *(("begin", STREAM, 1), ("end", STREAM, None), ("instantiate", None, 11, 0)),
        *(("launch", 12, 9), ("destroy executable", 12), ("destroy graph", 11)),
    ]
