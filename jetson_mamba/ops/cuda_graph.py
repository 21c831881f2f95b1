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
    """Memory of a device that graphs use, which must not run at the same time."""

    def __init__(self, device_index: int) -> None:
        self.device_index = device_index
        self.handle: Any = torch.cuda.graph_pool_handle()


class Graph:
    """A sequence of kernels that one launch starts; empty until its capture ends.

    It holds its share of a pool, whose memory is free for others when no graph has one.
    """

    # None where there is no driver, which the constructor raises for.
    _driver: Any = None
    _shares: Pool | None = None

    def __init__(self) -> None:
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

    def share(self, pool: Pool) -> None:
        """Have a share of a pool, of which something has been taken."""
        self._shares = pool

    def take(self, stream: int) -> None:
        """End the capture on a stream: what was captured is this graph's."""
        _call("cuStreamEndCapture", stream, self._graph)
        _call("cuGraphInstantiateWithFlags", self._executable, self._graph, 0)

    def __del__(self) -> None:
        # At the interpreter's end the driver may be gone, and in a forked child it never was there:
        # what is the process's goes with the process.
        if self._driver is None or sys.is_finalizing() or os.getpid() != self._process:
            return
        if self._executable:
            self._driver.cuGraphExecDestroy(self._executable)
        if self._graph:
            self._driver.cuGraphDestroy(self._graph)
        if self._shares is not None:
            release = getattr(torch._C, "_cuda_releasePool", None)
            if release is not None:
                release(self._shares.device_index, self._shares.handle)


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
    graph = Graph()
    with _allocating_from(pool.handle, current.device_index):
        graph.share(pool)
        _call("cuStreamBeginCapture_v2", current.cuda_stream, _THREAD_LOCAL)
        try:
            yield graph
        except BaseException:
            _driver().cuStreamEndCapture(current.cuda_stream, c_void_p())
            raise
        graph.take(current.cuda_stream)


@contextmanager
def _allocating_from(pool: Any, device_index: int) -> Iterator[None]:
    """Take what this thread allocates on the current stream out of the pool."""
    torch_c: Any = torch._C
    if hasattr(torch_c, "_cuda_beginAllocateCurrentThreadToPool"):  # torch 2.8
        torch_c._cuda_beginAllocateCurrentThreadToPool(device_index, pool)
        end = torch_c._cuda_endAllocateToPool
    else:
        torch_c._cuda_beginAllocateCurrentStreamToPool(device_index, pool)
        end = torch_c._cuda_endAllocateCurrentStreamToPool
    try:
        yield
    finally:
        try:
            end(device_index, pool)
        except TypeError:  # torch 2.1, which knows the pool by the stream
            end(device_index)


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
