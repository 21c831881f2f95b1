"""A stand-in for CUDA graphs, so that what decides over them is tested without a GPU."""

from __future__ import annotations

import ctypes
from typing import Any, Callable

import torch
from torch import Tensor


def at_its_address(weight: Tensor | None) -> Tensor | None:
    """What a graph knows of a weight: where it lies, whether it still does or not."""
    if weight is None or not weight.numel():
        return weight
    extent = 1 + sum((size - 1) * stride for size, stride in zip(weight.shape, weight.stride()))
    memory = (ctypes.c_char * (extent * weight.element_size())).from_address(weight.data_ptr())
    return torch.frombuffer(memory, dtype=weight.dtype).as_strided(weight.shape, weight.stride())


class Imitated:
    """Computes as a graph would: on the memory that it was made for, whatever the call gave."""

    made: list[Imitated]

    def __init__(
        self, function: Any, room: Any, inputs: Any, weights: Any, options: Any, written: int
    ) -> None:
        self.room = room
        self.kept = kept = room.tensors
        self._changed = kept[len(kept) - written :]
        weights = tuple(map(at_its_address, weights))
        for target, source in zip(kept, inputs):
            target.copy_(source)
        self._call: Callable[[], tuple[Tensor, ...]] = lambda: function(kept, weights, *options)
        self.results = self._call()
        self.bytes = sum(each.numel() * each.element_size() for each in self.results)
        self.replays = 0
        Imitated.made.append(self)

    def replay(self, inputs: tuple[Tensor, ...], stream: int) -> tuple[Tensor, ...]:
        """As a graph does it."""
        results = self.launched(inputs, stream)
        for source, target in zip(self._changed, inputs[len(inputs) - len(self._changed) :]):
            target.copy_(source)
        return results

    def launched(self, inputs: tuple[Tensor, ...], stream: int) -> tuple[Tensor, ...]:
        """The same where what is written stays."""
        self.replays += 1
        for target, source in zip(self.kept, inputs):
            target.copy_(source)
        return tuple(result.clone() for result in self._call())
