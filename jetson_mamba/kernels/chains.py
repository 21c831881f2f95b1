"""Launches that follow one another, whose arguments stay in memory from call to call.

Between two calls of one kind of one layer nearly all arguments are the same: sizes, strides, the
addresses of its weights. Handing all of them over anew takes twice as long as the launch itself. So
they lie where the driver reads them, as ``through_libraries.py`` lays them, and a call writes the
addresses alone that are others than the last time.
"""

from __future__ import annotations

import ctypes
import struct
import sys
from functools import partial
from typing import Any, Callable, NamedTuple, Sequence, Union

from jetson_mamba import forks

from . import through_libraries
from .compiler import Launch

# A launch that may overlap with the one before it: the driver's structure of a launch, and the
# attribute that allows it (CUDA Driver API, "CUlaunchConfig", "CUlaunchAttribute").
_CONFIGURATION = struct.Struct("7I4xqqI4x")
_ATTRIBUTE = struct.Struct("q64s")
_OVERLAPPING = _ATTRIBUTE.pack(6, struct.pack("i", 1))

_lock = forks.lock(sys.modules[__name__], "_lock")


class Place(NamedTuple):
    """An argument that is an address: ``offset`` bytes into the tensor ``source`` of a call."""

    source: int
    offset: int = 0


Arguments = Sequence[Union[int, Place]]


class Chain:
    """Launches with their arguments, to be started together any number of times."""

    def __init__(self, launches: Sequence[tuple[Launch, Arguments]], sources: int) -> None:
        self._launches = [(launch, _Room(len(arguments))) for launch, arguments in launches]
        # By source: where its address is told, and what is added to it.
        self._places: list[list[tuple[Any, int, int]]] = [[] for _ in range(sources)]
        for (_, room), (_, arguments) in zip(self._launches, launches):
            for at, argument in enumerate(arguments):
                if isinstance(argument, Place):
                    self._places[argument.source].append((room.parameters, at, argument.offset))
                else:
                    room.parameters[at] = argument
        self._addresses: list[int | None] = [None] * sources
        self._stream: int | None = None
        self._starts: list[Callable[[], int]] = []

    def __call__(self, device_index: int, *addresses: int) -> None:
        """Start all on the current stream of a device, which is the current one; return at once.

        ``addresses`` are those of the sources. Raises RuntimeError if the driver refuses.
        """
        stream = through_libraries.current_stream(device_index)
        with _lock:
            if stream != self._stream:
                self._starts = [_start(launch, room, stream) for launch, room in self._launches]
                self._stream = stream
            known = self._addresses
            for source, address in enumerate(addresses):
                if known[source] != address:
                    for parameters, at, offset in self._places[source]:
                        parameters[at] = address + offset
                    known[source] = address
            for start in self._starts:
                error = start()
                if error:
                    raise through_libraries.failed("cuLaunchKernel", error)


class _Room:
    """Memory of a launch's arguments, and of what tells the driver where they are."""

    def __init__(self, count: int) -> None:
        self.parameters = (ctypes.c_longlong * count)()
        self._size = ctypes.c_longlong(8 * count)
        at, size = ctypes.addressof(self.parameters), ctypes.addressof(self._size)
        self.extra = (ctypes.c_longlong * 5)(
            *(through_libraries.PARAMETERS, at, through_libraries.PARAMETERS_SIZE, size, 0)
        )
        self.configuration = ctypes.create_string_buffer(_CONFIGURATION.size)
        self.attribute = ctypes.create_string_buffer(_OVERLAPPING, _ATTRIBUTE.size)


def _start(launch: Launch, room: _Room, stream: int) -> Callable[[], int]:
    """A function that starts a launch on a stream and returns the driver's error."""
    driver, handle = through_libraries.driver(), launch.kernel.address
    extra = ctypes.addressof(room.extra)
    geometry = (*launch.grid, *launch.block, launch.shared_bytes)
    if not (launch.overlapping and launch.kernel.overlaps):
        return partial(driver.cuLaunchKernel, handle, *geometry, stream, None, extra)
    attribute = ctypes.addressof(room.attribute)
    _CONFIGURATION.pack_into(room.configuration, 0, *geometry, stream, attribute, 1)
    configuration = ctypes.addressof(room.configuration)
    start = driver.cuLaunchKernelEx
    start.argtypes = (ctypes.c_void_p,) * 4
    return partial(start, configuration, handle, None, extra)
