"""Launches the kernels of a small call all at once, by a CUDA graph.

A block at batch 1 keeps a GPU busy for some 30 us, and starting its kernels one by one takes a CPU
ten times as long. So where a call is like one met before, its kernels are *captured* in a CUDA
graph, which one launch repeats from then on.

A graph reads and writes the addresses that it was captured with. Weights are read where they lie,
and calls with weights that lie elsewhere have a graph of their own. What is made anew for every
call is copied to memory that the graph reads, and the results are copied out of memory that it
writes, so that a caller owns what it is given. Graphs of a stream share the memory between: they
run one after another.

All graphs are in one bounded memory. A graph goes with the weights that it reads, with the function
that it was made of, and where there are too many and it has not been used for long; what it reads
goes with the last graph that does.
"""

from __future__ import annotations

import sys
from itertools import count
from typing import Any, Callable, ContextManager, Hashable, Iterable, NamedTuple, Optional, Tuple
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor

from jetson_mamba import forks
from jetson_mamba.dispatch.autocast import without_cached_casts
from jetson_mamba.dispatch.environment import environment_key
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.dispatch.passing import passing
from jetson_mamba.dispatch.paths import Way, may_replay, way

from . import cuda_graph

Weights = Tuple[Optional[Tensor], ...]
# function(inputs, weights, *options): what it computes, on the current stream
Function = Callable[..., Tuple[Tensor, ...]]

# Larger calls keep the GPU busy for longer than their launches take; the copies would cost more.
MOST_ELEMENTS = 1 << 22
# What all graphs may hold: how many, of some 100 KB each, and what they read and write, in bytes.
MOST_GRAPHS = 1024
MOST_BYTES = 1 << 28
# Kinds that are remembered before they have a graph.
MOST_MET = 4 * MOST_GRAPHS
# Making a graph takes as long as some hundred calls. So one goes for another only after so many
# calls without it, more than there are kinds: a program that goes round through more of them than
# there is room for would make a graph at each call.
IDLE_CALLS = 4 * MOST_MET
# Streams of a device that have graphs: each has a workspace of cuBLAS, of up to 32 MB.
MOST_STREAMS = 4
_PLAIN = (Tensor, torch.nn.Parameter)
# From torch 2.1 on, a storage has one object in Python for as long as it lives.
_any = torch.empty(0)
_STORAGES_LAST = ref(_any.untyped_storage())() is not None


class _Room:
    """What graphs read in place of a call's inputs."""

    def __init__(self, inputs: tuple[Tensor, ...]) -> None:
        with torch.inference_mode(False):
            # In the order of their strides, without the gaps of a slice.
            self.tensors = tuple(torch.empty_like(x, requires_grad=False) for x in inputs)
        self.bytes = _bytes(self.tensors)
        # Whose tensors these are for now: no one else's call may write them.
        self.holder: ref[Any] | None = None

    def is_free(self) -> bool:
        """Whether nobody holds it."""
        return self.holder is None or self.holder() is None


def _bytes(tensors: Iterable[Tensor]) -> int:
    """What tensors take; Tensor.nbytes is there from torch 2.1 on."""
    return sum(x.numel() * x.element_size() for x in tensors)


class Memory:
    """What all graphs share and hold: they run one after another, also those of other functions."""

    # Two threads may share a stream: what a graph reads must not change before it runs. A function
    # that is captured may have parts that are launched by graphs elsewhere.
    lock: ContextManager[Any]

    def __init__(self) -> None:
        # By function and kind.
        self.kept: Memo[tuple[int, _Kind], _Graph] = Memo(MOST_GRAPHS)
        # Kinds that were called and have no graph: whether they may have one.
        self.met: Memo[tuple[int, _Kind], bool] = Memo(MOST_MET)
        # By stream, shapes, strides and dtypes. All layers of a model share it, and it is there as
        # long as one of their graphs.
        self.read: WeakValueDictionary[Hashable, _Room] = WeakValueDictionary()
        self._full_until = 0
        forks.lock(self, "lock")
        forks.tell(self, "forget")

    @property
    def graphs(self) -> int:
        """How many there are."""
        return len(self.kept)

    @property
    def bytes(self) -> int:
        """What they read and write."""
        return self.kept.bytes + sum(room.bytes for room in [*self.read.values()])

    def has_room(self) -> bool:
        """Whether a further graph may be made; one that is idle goes for it."""
        now = self.kept.clock()
        if now < self._full_until:
            return False
        while self.graphs >= MOST_GRAPHS or self.bytes >= MOST_BYTES:
            if not self.kept.drop_idle(IDLE_CALLS):
                # Looked at again before long: not by each call.
                self._full_until = now + IDLE_CALLS // 64
                return False
        return True

    def forget(self) -> None:
        """Forget all graphs."""
        self.kept.clear()
        self.met.clear()


MEMORY = Memory()
_numbers = count()


class Captured:
    """``function``, by a CUDA graph from the second call of a kind on.

    ``inputs`` are tensors that are made for a call, the first of which tells its size; ``weights``
    are tensors that outlast it. ``options`` are whatever decides beside the tensors and
    ``environment_key``. The function may change the last ``written`` inputs in place. No gradients
    are recorded.

    A graph is kept only if it gives the function's bits, and as long as this object is.
    """

    def __init__(self, function: Function, written: int = 0) -> None:
        self._function = function
        self.written = written
        self._memory = MEMORY
        self._number = next(_numbers)

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
        kind = _kind(inputs, weights, options, self.written)
        if kind is None:
            return None
        memory, key = self._memory, (self._number, kind)
        with memory.lock:
            graph = memory.kept.get(key) or self._captured(key, inputs, weights, options)
            if graph is None or not graph.room.is_free():
                return None
            return graph.replay(inputs, kind.stream)

    def held(
        self, holder: object, inputs: tuple[Tensor, ...], weights: Weights, *options: Hashable
    ) -> Held | None:
        """The graph of such a call, for ``holder`` alone as long as it lives; None without one.

        What is written is read and written where the graph has it, from the last call on.
        """
        kind = _kind(inputs, weights, options, self.written)
        with self._memory.lock:
            graph = None if kind is None else self._memory.kept.get((self._number, kind))
            if kind is None or graph is None or not graph.room.is_free():
                return None
            graph.room.holder = ref(holder)
        return Held(graph, kind, len(inputs) - self.written)

    def graphs(self) -> list[_Graph]:
        """Those of this function."""
        return [graph for (number, _), graph in self._memory.kept.items() if number == self._number]

    def _captured(
        self,
        key: tuple[int, _Kind],
        inputs: tuple[Tensor, ...],
        weights: Weights,
        options: tuple[Hashable, ...],
    ) -> _Graph | None:
        # A kind that is met once, as each length of a prompt may be, is not worth a graph. The
        # first call also compiles and tunes, which must be over before anything is captured.
        memory, kind = self._memory, key[1]
        may_have_one = memory.met.get(key)
        if may_have_one is None:
            memory.met.put(key, True, while_there_are=(self,))
            return None
        device = inputs[0].device
        if not (may_have_one and memory.has_room() and _has_place(device, kind.stream)):
            return None
        place = (kind.stream, kind.inputs)
        try:
            for x in (*inputs, *weights):
                if x is not None and (type(x) not in _PLAIN or x.device != device):
                    raise TypeError(f"a graph is not made of {type(x).__name__} on {x.device}")
            room = memory.read.get(place)
            if room is None:
                room = memory.read[place] = _Room(inputs)
            if not room.is_free():
                return None
            with without_cached_casts(device):
                graph = _capture(self._function, room, inputs, weights, options, self.written)
        except Exception as error:
            # Whatever it is, the function itself says it better, or works.
            if passing(error) is not None:
                memory.met.discard(key)
            else:
                memory.met.put(key, False, while_there_are=(self,))
            return None
        memory.met.discard(key)
        reads = [x.untyped_storage() for x in weights if x is not None and _STORAGES_LAST]
        memory.kept.put(key, graph, graph.bytes, while_there_are=(self, *reads))
        return graph


class _Kind(NamedTuple):
    """What a graph is made for."""

    options: tuple[Hashable, ...]
    environment: tuple[Hashable, ...]
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
    # What it is made of, which is there as long as it is.
    room: _Room

    def replay(self, inputs: tuple[Tensor, ...], stream: int) -> tuple[Tensor, ...]:
        """The results for these inputs, in memory of their own, on their device's stream."""
        results = self.launched(inputs, stream)
        if self.changed:
            _copy_all([*inputs[-len(self.changed) :]], self.changed)
        return results

    def launched(self, inputs: tuple[Tensor, ...], stream: int) -> tuple[Tensor, ...]:
        """The results; what is written lies where the graph has it.

        The inputs may be the first ones alone: the others are what they were left as.
        """
        _copy(self.read[: len(inputs)], inputs, self.as_bytes)
        if torch._C._cuda_getDevice() == inputs[0].get_device():
            self.graph.launch(stream)
        else:
            with torch.cuda.device(inputs[0].get_device()):
                self.graph.launch(stream)
        return tuple([result.clone() for result in self.results])


class Held:
    """A graph whose written inputs stay where it has them, from call to call."""

    def __init__(self, graph: _Graph, kind: _Kind, given: int) -> None:
        self._graph = graph
        self._kind = kind
        self._given = given

    @property
    def written(self) -> tuple[Tensor, ...]:
        """What the graph writes, as its last call left it."""
        return self._graph.room.tensors[self._given :]

    def launched(self, *inputs: Tensor) -> tuple[Tensor, ...] | None:
        """The results for the inputs that are not written; None where a call is of another kind."""
        kind = self._kind
        if (
            tuple([(type(x), x.shape, x.stride(), x.dtype, x.device) for x in inputs])
            != kind.inputs[: self._given]
            or _stream(inputs[0]) != kind.stream
            or environment_key(inputs[0].device) != kind.environment
        ):
            return None
        with MEMORY.lock:
            return self._graph.launched(inputs, kind.stream)

    def release(self) -> None:
        """Let others have it."""
        self._graph.room.holder = None


def _copy(targets: list[Tensor], sources: tuple[Tensor, ...], as_bytes: bool) -> None:
    """Copy all, by one kernel if they are of one dtype; as bytes, they are."""
    if len(sources) == 1:
        targets[0].copy_(sources[0])
    elif as_bytes:
        torch._foreach_copy_(targets, [x.view(torch.uint8) for x in sources])
    else:
        _copy_all(targets, [*sources])


def _copy_all(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy all, by one kernel for each dtype: of several at once, torch would copy one by one."""
    if len({x.dtype for x in targets}) == 1:
        torch._foreach_copy_(targets, sources)
        return
    of_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for target, source in zip(targets, sources):
        some, others = of_dtype.setdefault(target.dtype, ([], []))
        some.append(target)
        others.append(source)
    for some, others in of_dtype.values():
        torch._foreach_copy_(some, others)


# By device and stream: a stream aside, on which its graphs are captured and nothing else is. There
# is one for all of them: a library keeps a workspace for each stream that it has seen.
_places: dict[tuple[int, int], torch.cuda.Stream] = {}
_aside: set[int] = set()
# The memory between, as long as there are graphs that use it.
_pools: WeakValueDictionary[tuple[int, int], cuda_graph.Pool] = WeakValueDictionary()


def _has_place(device: torch.device, stream: int) -> bool:
    """Whether a stream of a device has graphs, or may have."""
    if (device.index, stream) in _places:
        return True
    return sum(index == device.index for index, _ in _places) < MOST_STREAMS


@torch.inference_mode(False)
@torch.no_grad()
def _capture(
    function: Function,
    room: _Room,
    inputs: tuple[Tensor, ...],
    weights: Weights,
    options: tuple[Hashable, ...],
    written: int,
) -> _Graph:
    """A graph of ``function(room.tensors, weights, *options)``; ``inputs`` are for trying it.

    Raises RuntimeError if the graph gives other results than the function.
    """
    device, kept = inputs[0].device, room.tensors
    as_bytes = len({x.dtype for x in kept}) > 1 and all(
        x.dim() > 0 and x.stride(-1) == 1 for x in (*kept, *inputs)
    )
    read = [x.view(torch.uint8) for x in kept] if as_bytes else [*kept]
    changed = [*kept[len(kept) - written :]]
    with torch.cuda.device(device):
        current = torch.cuda.current_stream()
        key = (current.device_index, current.cuda_stream)
        if key not in _places:
            _places[key] = cuda_graph.stream()
            _aside.add(_places[key].cuda_stream)
        aside = _places[key]
        pool = _pools.get(key)
        if pool is None:
            pool = _pools[key] = cuda_graph.Pool(current.device_index)
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            _copy(read, inputs, as_bytes)
            # Once outside of the graph: libraries set themselves up for a stream at its first use.
            expected = [*function(kept, weights, *options), *(x.clone() for x in changed)]
            with cuda_graph.captured(pool) as graph:
                results = function(kept, weights, *options)
            _copy(read, inputs, as_bytes)
            graph.launch(aside.cuda_stream)
            for found, right in zip((*results, *changed), expected):
                if not torch.allclose(found, right, rtol=0, atol=0, equal_nan=True):
                    raise RuntimeError("the graph gives other results than the function")
        current.wait_stream(aside)
    return _Graph(graph, results, read, changed, as_bytes, _bytes(results), room)


def _kind(
    inputs: tuple[Tensor, ...],
    weights: Weights,
    options: tuple[Hashable, ...],
    written: int,
) -> _Kind | None:
    """The kind of a call; None where it is not to be launched by a graph."""
    try:
        stream = _stream(inputs[0])
        if stream is None or _are_shared(inputs, written):
            return None
        return _Kind(
            options,
            environment_key(inputs[0].device),
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


def _are_shared(inputs: tuple[Tensor, ...], written: int) -> bool:
    """Whether an input that is written is another one too, of which a graph has a copy."""
    return written > 0 and len({x.data_ptr() for x in inputs}) < len(inputs)


def is_on_gpu(first: object) -> bool:
    """Whether this is a plain tensor on a GPU: the cheapest of what a graph asks for."""
    return type(first) is Tensor and first.is_cuda


def is_small(first: object, most_elements: int) -> bool:
    """Whether this is a tensor of that many numbers at most, on a GPU."""
    return type(first) is Tensor and first.is_cuda and first.numel() <= most_elements


def _stream(first: Tensor) -> int | None:
    """The current stream of the first input's device; None for a call that is no graph's.

    Someone else may capture, trace, transform or watch what is computed, and is to see all of it.
    """
    if (
        not first.is_cuda
        or first.numel() > MOST_ELEMENTS
        or way(first) is not Way.KERNELS
        or not may_replay()
        or torch.is_anomaly_enabled()
        or sys.gettrace() is not None
        or torch._C._cuda_isCurrentStreamCapturing()
    ):
        return None
    stream = int(torch._C._cuda_getCurrentRawStream(first.get_device()))
    return None if stream in _aside else stream
