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
# A graph takes some 100 KB and the memory of its inputs and results.
MOST_GRAPHS = 1024
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
        kind: Hashable,
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
        if len(self._graphs) >= MOST_GRAPHS or threading.active_count() > 1:
            return None
        plain = all(type(x) in _PLAIN for x in (*inputs, *weights) if x is not None)
        same_device = all(x is None or x.device == inputs[0].device for x in (*inputs, *weights))
        graph = None
        if plain and same_device:
            try:
                graph = _capture(self._function, inputs, weights, options)
            except Exception:
                # Whatever it is, the function itself says it better, or works.
                graph = None
        self._graphs[kind] = graph
        return graph


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


# By device and stream: where the graphs that run on it have the memory between, and the first of
# them, without which torch would give the memory up.
_pools: dict[tuple[int, int], tuple[Any, torch.cuda.CUDAGraph]] = {}


@torch.inference_mode(False)
@torch.no_grad()
def _capture(
    function: Function,
    inputs: tuple[Tensor, ...],
    weights: Weights,
    options: tuple[Hashable, ...],
) -> _Graph:
    device = inputs[0].device
    kept = tuple(
        torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=device) for x in inputs
    )
    read = [x.view(torch.uint8) for x in kept]
    torch._foreach_copy_(read, [x.view(torch.uint8) for x in inputs])
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        place = (device.index, current.cuda_stream)
        graph = torch.cuda.CUDAGraph()
        pool = _pools[place][0] if place in _pools else torch.cuda.graph_pool_handle()
        aside = torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            # Once outside of the graph: libraries set themselves up for a stream at its first use.
            function(kept, weights, *options)
            try:
                # Other threads may go on allocating meanwhile.
                graph.capture_begin(pool, capture_error_mode="thread_local")
                try:
                    results = function(kept, weights, *options)
                finally:
                    graph.capture_end()
            except Exception:
                _leave_capture(device.index)
                raise
        current.wait_stream(aside)
        _pools.setdefault(place, (pool, graph))
    return _Graph(graph, results, read)


def _leave_capture(device_index: int) -> None:
    """Free the random number generator from a capture that failed, in which torch leaves it."""
    generator = torch.cuda.default_generators[device_index]
    if hasattr(generator, "graphsafe_set_state"):  # torch 2.5; before, nothing holds it
        generator.graphsafe_set_state(generator.clone_state())


def _kind(
    inputs: tuple[Tensor, ...], weights: Weights, options: tuple[Hashable, ...]
) -> Hashable | None:
    """What a graph is made for; None where the call is not to be launched by one."""
    try:
        first = inputs[0]
        if not first.is_cuda or first.numel() > MOST_ELEMENTS or _watched():
            return None
        return (
            options,
            torch._C._cuda_getCurrentRawStream(first.get_device()),
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


def _watched() -> bool:
    """Whether someone else captures or watches what is computed, and is to see all of it."""
    return bool(torch._C._cuda_isCurrentStreamCapturing() or torch._C._len_torch_dispatch_stack())
