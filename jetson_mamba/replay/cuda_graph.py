"""CUDA graphs that are captured while other threads go on with what they do.

``torch.cuda.CUDAGraph`` takes the generator of the device's random numbers for the time of its
capture, and whoever draws some in another thread meanwhile gets an error. A notebook, a progress
bar and torch's own compiler all run threads. So the driver is asked to capture, by its own
functions (CUDA Driver API, "Stream Management" and "Graph Management"), which need no further
package. What is captured can draw no random numbers: torch refuses them, in this thread alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import contextmanager
from ctypes import POINTER, c_char_p, c_int, c_uint, c_uint64, c_void_p
from functools import lru_cache
from typing import Any, Iterator

import torch

# CU_STREAM_CAPTURE_MODE_THREAD_LOCAL: other threads may go on allocating meanwhile.
_THREAD_LOCAL = 1
# CU_STREAM_NON_BLOCKING: what is launched on the default stream does not wait for it.
_NON_BLOCKING = 1
_FUNCTIONS = {
    "cuStreamCreate": (POINTER(c_void_p), c_uint),
    "cuStreamBeginCapture_v2": (c_void_p, c_int),
    "cuStreamEndCapture": (c_void_p, POINTER(c_void_p)),
    "cuGraphInstantiateWithFlags": (POINTER(c_void_p), c_void_p, c_uint64),
    "cuGraphLaunch": (c_void_p, c_void_p),
    "cuGraphExecDestroy": (c_void_p,),
    "cuGraphDestroy": (c_void_p,),
    "cuGetErrorName": (c_int, POINTER(c_char_p)),
}


class Pool:
    """Memory of a device that graphs share, which must not run at the same time.

    What it once holds it keeps for further graphs, and gives back to torch at its own end.
    """

    _released = True

    def __init__(self, device_index: int) -> None:
        self._device = device_index
        self._process = os.getpid()
        self._handle: Any = torch.cuda.graph_pool_handle()
        # torch counts who allocates from a pool, and lets go of one that nobody is left of. This
        # is the pool's own part.
        self._end(self._begin())
        self._released = False

    @contextmanager
    def allocating(self) -> Iterator[None]:
        """Take what this thread allocates on the current stream out of the pool."""
        end = self._begin()
        try:
            yield
        finally:
            self._end(end)
            self._release()

    def _begin(self) -> Any:
        """Begin to allocate; returns what ends it."""
        torch_c: Any = torch._C
        if hasattr(torch_c, "_cuda_beginAllocateCurrentThreadToPool"):  # torch 2.8
            torch_c._cuda_beginAllocateCurrentThreadToPool(self._device, self._handle)
            return torch_c._cuda_endAllocateToPool
        torch_c._cuda_beginAllocateCurrentStreamToPool(self._device, self._handle)
        return torch_c._cuda_endAllocateCurrentStreamToPool

    def _end(self, end: Any) -> None:
        try:
            end(self._device, self._handle)
        except TypeError:  # torch 2.1, which knows the pool by the stream
            end(self._device)

    def _release(self) -> None:
        release = getattr(torch._C, "_cuda_releasePool", None)
        if release is not None:
            release(self._device, self._handle)

    def __del__(self) -> None:
        if not (self._released or _is_over(self._process)):
            self._release()


class Graph:
    """A sequence of kernels that one launch starts; empty until its capture ends.

    The pool that its tensors lie in lasts as long as it does.
    """

    # None where there is no driver, which the constructor raises for.
    _driver: Any = None

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._process = os.getpid()
        self._driver = _driver()
        self._graph = c_void_p()
        self._executable = c_void_p()

    def launch(self, stream: int) -> None:
        """Start the kernels on a stream of the current device.

        Raises RuntimeError if the driver does not.
        """
        error = self._driver.cuGraphLaunch(self._executable, stream)
        if error:
            raise _failed("cuGraphLaunch", error)

    def take(self, stream: int) -> None:
        """End the capture on a stream: what was captured is this graph's."""
        _call("cuStreamEndCapture", stream, self._graph)
        _call("cuGraphInstantiateWithFlags", self._executable, self._graph, 0)

    def __del__(self) -> None:
        if self._driver is None or _is_over(self._process):
            return
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
        if self._graph:
            self._driver.cuGraphDestroy(self._graph)


def _is_over(process: int) -> bool:
    """Whether what is a process's goes with the process, and need not be given back.

    At the interpreter's end the driver may be gone, and in a forked child it never was there.
    """
    return sys.is_finalizing() or os.getpid() != process


def stream() -> torch.cuda.Stream:
    """A stream of the current device that no one else has: torch hands out the same few in turn.

    What another thread launches on a stream while it is captured would become a part of the graph.
    """
    handle = c_void_p()
    _call("cuStreamCreate", handle, _NON_BLOCKING)
    return torch.cuda.ExternalStream(handle.value)


@contextmanager
def captured(pool: Pool) -> Iterator[Graph]:
    """A graph of what the block launches on the current stream, which is not the default one.

    Tensors that the block makes lie in the ``pool``.

    Raises RuntimeError where something cannot be captured.
    """
    current = torch.cuda.current_stream()
    graph = Graph(pool)
    with pool.allocating():
        _call("cuStreamBeginCapture_v2", current.cuda_stream, _THREAD_LOCAL)
        try:
            yield graph
        except BaseException:
            _driver().cuStreamEndCapture(current.cuda_stream, c_void_p())
            raise
        graph.take(current.cuda_stream)


def _call(function: str, *arguments: Any) -> None:
    error = getattr(_driver(), function)(*arguments)
    if error:
        raise _failed(function, error)


def _failed(function: str, error: int) -> RuntimeError:
    name = c_char_p()
    _driver().cuGetErrorName(error, name)
    return RuntimeError(f"{function}: {(name.value or b'unknown error').decode()} ({error})")


@lru_cache(maxsize=None)
def _driver() -> Any:
    """The driver's library; raises RuntimeError where it is missing or older than CUDA 11.4."""
    try:
        # A handle of our own: argument types are set on it.
        library = ctypes.CDLL("libcuda.so.1")
        for name, arguments in _FUNCTIONS.items():
            getattr(library, name).argtypes = arguments
    except (OSError, AttributeError) as error:
        raise RuntimeError(f"CUDA graphs need a driver of CUDA 11.4 or later ({error})") from error
    return library
