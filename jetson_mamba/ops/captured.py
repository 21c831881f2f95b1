"""Launches the kernels of a small call all at once, by a CUDA graph.

A block at batch 1 keeps a GPU busy for some 30 us, and starting its kernels one by one takes a CPU
ten times as long. So where a call is like one met before, its kernels are *captured* in a CUDA
graph, which one launch repeats from then on.

Nothing is captured while other Python threads run: until a capture ends, torch would refuse them
random numbers of the device. Graphs that are there serve every thread.

A graph reads and writes the addresses that it was captured with. Weights are read where they lie,
and calls with weights that lie elsewhere have a graph of their own. What is made anew for every
call is copied to memory that the graph reads, and the results are copied out of memory that it
writes, so that a caller owns what it is given. Graphs of a stream share the memory between: they
run one after another.
"""

from __future__ import annotations

import threading
from typing import Any, Callable, Hashable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

Weights = Tuple[Optional[Tensor], ...]
# function(inputs, weights, *options): what it computes, on the current stream
Function = Callable[..., Tuple[Tensor, ...]]

# Larger calls keep the GPU busy for longer than their launches take; the copies would cost more.
MOST_ELEMENTS = 1 << 22
# What all graphs of a function may hold: how many, of some 100 KB each, and what they read and
# write, in bytes.
MOST_GRAPHS = 1024
MOST_BYTES = 1 << 28
# Streams that have graphs: each has a workspace of cuBLAS, of up to 32 MB.
MOST_STREAMS = 4
_PLAIN = (Tensor, torch.nn.Parameter)


class Captured:
    """``function``, by a CUDA graph from the second call of a kind on.

    ``inputs`` are tensors that are made for a call, the first of which tells its size; ``weights``
    are tensors that outlast it. ``options`` are whatever decides beside the tensors, also what is
    set elsewhere. No gradients are recorded.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._met: set[Hashable] = set()
        # By stream, shapes, strides and dtypes: what graphs read in place of a call's inputs.
        # They run one after another, so those of all layers of a model share it.
        self._read: dict[Hashable, tuple[Tensor, ...]] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def __call__(
        self, inputs: tuple[Tensor, ...], weights: Weights, *options: Hashable
    ) -> tuple[Tensor, ...]:
        """What ``function(inputs, weights, *options)`` returns."""
        kind = _kind(inputs, weights, options)
        if kind is None:
            return self._function(inputs, weights, *options)
        # Two threads may share a stream: what a graph reads must not change before it runs.
        with self._lock:
            try:
                graph = self._graphs[kind]
            except KeyError:
                graph = self._captured(kind, inputs, weights, options)
            if graph is not None:
                return graph.replay(inputs)
        return self._function(inputs, weights, *options)

    def _captured(
        self,
        kind: _Kind,
        inputs: tuple[Tensor, ...],
        weights: Weights,
        options: tuple[Hashable, ...],
    ) -> _Graph | None:
        # A kind that is met once, as each length of a prompt may be, is not worth a graph. The
        # first call also compiles and tunes, which must be over before anything is captured.
        if kind not in self._met:
            if len(self._met) >= MOST_GRAPHS:
                self._met.clear()
            self._met.add(kind)
            return None
        full = len(self._graphs) >= MOST_GRAPHS or self._bytes >= MOST_BYTES
        if full or threading.active_count() > 1:
            return None
        tensors = [x for x in (*inputs, *weights) if x is not None]
        graph = None
        if all(type(x) in _PLAIN and x.device == inputs[0].device for x in tensors):
            try:
                place = (kind.stream, kind.inputs)
                if place not in self._read:
                    self._read[place] = _room_for(inputs)
                    self._bytes += sum(x.nbytes for x in inputs)
                graph = _capture(self._function, self._read[place], inputs, weights, options)
                self._bytes += sum(x.nbytes for x in graph.results)
            except Exception:
                # Whatever it is, the function itself says it better, or works.
                graph = None
        self._graphs[kind] = graph
        return graph


class _Kind(NamedTuple):
    """What a graph is made for."""

    options: tuple[Hashable, ...]
    stream: int
    inputs: tuple[Hashable, ...]
    weights: tuple[Hashable, ...]


class _Graph(NamedTuple):
    graph: torch.cuda.CUDAGraph
    # What the graph writes.
    results: tuple[Tensor, ...]
    # What it reads in place of the inputs, as bytes: so one kernel copies them all.
    read: list[Tensor]

    def replay(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results for these inputs, in memory of their own."""
        torch._foreach_copy_(self.read, [x.view(torch.uint8) for x in inputs])
        self.graph.replay()
        return tuple([result.clone() for result in self.results])


class _Place(NamedTuple):
    """Where the graphs that run on a stream are captured, and have the memory between."""

    pool: Any
    # One for all: a library keeps a workspace for each stream that it has seen.
    aside: torch.cuda.Stream
    # Without which torch would give the pool up.
    first: torch.cuda.CUDAGraph


_places: dict[tuple[int, int], _Place] = {}


@torch.inference_mode(False)
def _room_for(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in inputs
    )


@torch.inference_mode(False)
@torch.no_grad()
def _capture(
    function: Function,
    kept: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    weights: Weights,
    options: tuple[Hashable, ...],
) -> _Graph:
    """A graph of ``function(kept, weights, *options)``; ``inputs`` are for trying it."""
    device = inputs[0].device
    read = [x.view(torch.uint8) for x in kept]
    torch._foreach_copy_(read, [x.view(torch.uint8) for x in inputs])
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        key = (device.index, current.cuda_stream)
        graph = torch.cuda.CUDAGraph()
        place = _places.get(key)
        if place is None:
            if len(_places) >= MOST_STREAMS:
                raise RuntimeError("there are graphs on as many streams as may have them")
            place = _Place(torch.cuda.graph_pool_handle(), torch.cuda.Stream(), graph)
        place.aside.wait_stream(current)
        with torch.cuda.stream(place.aside):
            # Once outside of the graph: libraries set themselves up for a stream at its first use.
            function(kept, weights, *options)
            try:
                # Other threads may go on allocating meanwhile.
                graph.capture_begin(place.pool, capture_error_mode="thread_local")
                try:
                    results = function(kept, weights, *options)
                finally:
                    graph.capture_end()
            except Exception:
                _leave_capture(device.index)
                raise
        current.wait_stream(place.aside)
        _places[key] = place
    return _Graph(graph, results, read)


def _leave_capture(device_index: int) -> None:
    """Free the random number generator from a capture that failed, in which torch leaves it."""
    generator = torch.cuda.default_generators[device_index]
    if hasattr(generator, "graphsafe_set_state"):  # torch 2.5; before, nothing holds it
        generator.graphsafe_set_state(generator.clone_state())


def _kind(
    inputs: tuple[Tensor, ...], weights: Weights, options: tuple[Hashable, ...]
) -> _Kind | None:
    """The kind of a call; None where it is not to be launched by a graph."""
    try:
        stream = _stream(inputs[0])
        if stream is None:
            return None
        return _Kind(
            options,
            stream,
            tuple([(type(x), x.shape, x.stride(), x.dtype, x.device) for x in inputs]),
            tuple(
                [
                    None
                    if x is None
                    else (type(x), x.data_ptr(), x.shape, x.stride(), x.dtype, x.device)
                    for x in weights
                ]
            ),
        )
    except AttributeError:  # no tensor, which the function has words for
        return None


def _stream(first: Tensor) -> int | None:
    """The current stream of the first input's device; None for a call that is no graph's.

    Someone else may capture or watch what is computed, and is to see all of it.
    """
    if (
        not first.is_cuda
        or first.numel() > MOST_ELEMENTS
        or torch._C._cuda_isCurrentStreamCapturing()
        or torch._C._len_torch_dispatch_stack()
    ):
        return None
    return int(torch._C._cuda_getCurrentRawStream(first.get_device()))
