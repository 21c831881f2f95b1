"""Launches the kernels of a small call all at once, by a CUDA graph.

A block at batch 1 keeps a GPU busy for some 30 us, and starting its kernels one by one takes a CPU
ten times as long. So where a call is like one met before, its kernels are *captured* in a CUDA
graph, which one launch repeats from then on.

A graph reads and writes the addresses that it was captured with. Weights are read where they lie,
and calls with weights that lie elsewhere have a graph of their own. What is made anew for every
call is copied to memory that the graph reads, and the results are copied out of memory that it
writes, so that a caller owns what it is given. Graphs of a stream share the memory between: they
run one after another.
"""

from __future__ import annotations

import sys
import threading
from typing import Any, Callable, Hashable, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

from . import cuda_graph

Weights = Tuple[Optional[Tensor], ...]
# function(inputs, weights, *options): what it computes, on the current stream
Function = Callable[..., Tuple[Tensor, ...]]

# Larger calls keep the GPU busy for longer than their launches take; the copies would cost more.
MOST_ELEMENTS = 1 << 22
# What all graphs may hold: how many, of some 100 KB each, and what they read and write, in bytes.
MOST_GRAPHS = 1024
MOST_BYTES = 1 << 28
# Streams that have graphs: each has a workspace of cuBLAS, of up to 32 MB.
MOST_STREAMS = 4
_PLAIN = (Tensor, torch.nn.Parameter)


class Memory:
    """What all graphs share and hold: they run one after another, also those of other functions."""

    def __init__(self) -> None:
        # By stream, shapes, strides and dtypes: what graphs read in place of a call's inputs.
        # All layers of a model share it.
        self.read: dict[Hashable, tuple[Tensor, ...]] = {}
        self.bytes = 0
        self.graphs = 0
        # Two threads may share a stream: what a graph reads must not change before it runs. A
        # function that is captured may have parts that are launched by graphs elsewhere.
        self.lock = threading.RLock()

    def is_full(self) -> bool:
        """Whether no further graph is made."""
        return self.graphs >= MOST_GRAPHS or self.bytes >= MOST_BYTES


MEMORY = Memory()


class Captured:
    """``function``, by a CUDA graph from the second call of a kind on.

    ``inputs`` are tensors that are made for a call, the first of which tells its size; ``weights``
    are tensors that outlast it. ``options`` are whatever decides beside the tensors, also what is
    set elsewhere. The function may change the last ``written`` inputs in place. No gradients are
    recorded.

    A graph is kept only if it gives the function's bits, and as long as this object is.
    """

    def __init__(self, function: Function, written: int = 0) -> None:
        self._function = function
        self._written = written
        self._memory = MEMORY
        self._graphs: dict[Hashable, _Graph | None] = {}
        self._met: set[Hashable] = set()

    def __call__(
        self, inputs: tuple[Tensor, ...], weights: Weights, *options: Hashable
    ) -> tuple[Tensor, ...]:
        """What ``function(inputs, weights, *options)`` returns."""
        results = self.launched(inputs, weights, *options)
        return self._function(inputs, weights, *options) if results is None else results

    def launched(
        self, inputs: tuple[Tensor, ...], weights: Weights, *options: Hashable
    ) -> tuple[Tensor, ...] | None:
        """The results, by a graph; None where there is none, and nothing has been computed."""
        kind = _kind(inputs, weights, options)
        if kind is None:
            return None
        with self._memory.lock:
            try:
                graph = self._graphs[kind]
            except KeyError:
                graph = self._captured(kind, inputs, weights, options)
            return graph.replay(inputs, kind.stream) if graph is not None else None

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
        memory = self._memory
        if memory.is_full():
            return None
        tensors = [x for x in (*inputs, *weights) if x is not None]
        graph = None
        if all(type(x) in _PLAIN and x.device == inputs[0].device for x in tensors):
            try:
                place = (kind.stream, kind.inputs)
                if place not in memory.read:
                    memory.read[place] = _room_for(inputs)
                    memory.bytes += sum(x.nbytes for x in inputs)
                graph = _capture(
                    self._function, memory.read[place], inputs, weights, options, self._written
                )
                memory.bytes += graph.bytes
                memory.graphs += 1
            except Exception:
                # Whatever it is, the function itself says it better, or works.
                graph = None
        self._graphs[kind] = graph
        return graph

    def __del__(self) -> None:
        for graph in self._graphs.values():
            if graph is not None:
                self._memory.bytes -= graph.bytes
                self._memory.graphs -= 1


class _Kind(NamedTuple):
    """What a graph is made for."""

    options: tuple[Hashable, ...]
    stream: int
    inputs: tuple[Hashable, ...]
    weights: tuple[Hashable, ...]


class _Graph(NamedTuple):
    graph: cuda_graph.Graph
    # What the graph writes, beside what it changes of what it reads.
    results: tuple[Tensor, ...]
    # What it reads in place of the inputs, and changes of it.
    read: list[Tensor]
    changed: list[Tensor]
    as_bytes: bool
    bytes: int

    def replay(self, inputs: tuple[Tensor, ...], stream: int) -> tuple[Tensor, ...]:
        """The results for these inputs, in memory of their own, on their device's stream."""
        _copy(self.read, inputs, self.as_bytes)
        if torch._C._cuda_getDevice() == inputs[0].get_device():
            self.graph.launch(stream)
        else:
            with torch.cuda.device(inputs[0].get_device()):
                self.graph.launch(stream)
        if self.changed:
            torch._foreach_copy_([*inputs[-len(self.changed) :]], self.changed)
        return tuple([result.clone() for result in self.results])


def _copy(targets: list[Tensor], sources: tuple[Tensor, ...], as_bytes: bool) -> None:
    """Copy all, by one kernel if they are of one dtype; as bytes, they are."""
    if len(sources) == 1:
        targets[0].copy_(sources[0])
    elif as_bytes:
        torch._foreach_copy_(targets, [x.view(torch.uint8) for x in sources])
    else:
        torch._foreach_copy_(targets, [*sources])


class _Place(NamedTuple):
    """Where the graphs that run on a stream are captured, and have the memory between."""

    pool: Any
    # One for all: a library keeps a workspace for each stream that it has seen.
    aside: torch.cuda.Stream


_places: dict[tuple[int, int], _Place] = {}
# Their streams aside, on which nothing else is to be captured.
_aside: set[int] = set()


@torch.inference_mode(False)
def _room_for(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    # In the order of their strides, without the gaps of a slice.
    return tuple(torch.empty_like(x, requires_grad=False) for x in inputs)


@torch.inference_mode(False)
@torch.no_grad()
def _capture(
    function: Function,
    kept: tuple[Tensor, ...],
    inputs: tuple[Tensor, ...],
    weights: Weights,
    options: tuple[Hashable, ...],
    written: int,
) -> _Graph:
    """A graph of ``function(kept, weights, *options)``; ``inputs`` are for trying it.

    Raises RuntimeError if the graph gives other results than the function.
    """
    device = inputs[0].device
    as_bytes = len({x.dtype for x in kept}) > 1 and all(x.stride(-1) == 1 for x in kept)
    read = [x.view(torch.uint8) for x in kept] if as_bytes else [*kept]
    changed = [*kept[len(kept) - written :]]
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        key = (device.index, current.cuda_stream)
        place = _places.get(key)
        if place is None:
            if len(_places) >= MOST_STREAMS:
                raise RuntimeError("there are graphs on as many streams as may have them")
            place = _places[key] = _Place(torch.cuda.graph_pool_handle(), cuda_graph.stream())
            _aside.add(place.aside.cuda_stream)
        place.aside.wait_stream(current)
        with torch.cuda.stream(place.aside):
            _copy(read, inputs, as_bytes)
            # Once outside of the graph: libraries set themselves up for a stream at its first use.
            expected = [*function(kept, weights, *options), *(x.clone() for x in changed)]
            with cuda_graph.captured(place.pool) as graph:
                results = function(kept, weights, *options)
            _copy(read, inputs, as_bytes)
            graph.launch(place.aside.cuda_stream)
            for found, right in zip((*results, *changed), expected):
                if not torch.allclose(found, right, rtol=0, atol=0, equal_nan=True):
                    raise RuntimeError("the graph gives other results than the function")
        current.wait_stream(place.aside)
    return _Graph(graph, results, read, changed, as_bytes, sum(x.nbytes for x in results))


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


def is_small(first: object, most_elements: int) -> bool:
    """Whether this is a tensor of that many numbers at most, on a GPU."""
    return (
        type(first) is Tensor
        and first.is_cuda
        and torch._C._get_tracing_state() is None
        and first.numel() <= most_elements
    )


def _stream(first: Tensor) -> int | None:
    """The current stream of the first input's device; None for a call that is no graph's.

    Someone else may capture, trace, transform or watch what is computed, and is to see all of it.
    """
    if (
        not first.is_cuda
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._len_torch_dispatch_stack()
        or sys.gettrace() is not None
        or torch._C._cuda_isCurrentStreamCapturing()
        or first.numel() > MOST_ELEMENTS
    ):
        return None
    stream = int(torch._C._cuda_getCurrentRawStream(first.get_device()))
    return None if stream in _aside else stream
