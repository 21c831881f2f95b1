"""A stand-in for CUDA graphs, so that what decides over them is tested without a GPU."""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor


class Imitated:
    """Computes as a graph would: on the memory that it was made for, whatever the call gave."""

    made: list[Imitated]

    def __init__(
        self, function: Any, room: Any, inputs: Any, weights: Any, options: Any, written: int
    ) -> None:
        self.room = room
        self.kept = kept = room.tensors
        self._changed = kept[len(kept) - written :]
        self._call: Callable[[], tuple[Tensor, ...]] = lambda: function(kept, weights, *options)
        self.results = self._call()
        self.bytes = sum(result.nbytes for result in self.results)
        self.replays = 0
        Imitated.made.append(self)

    def replay(self, inputs: tuple[Tensor, ...], stream: int) -> tuple[Tensor, ...]:
        """As a graph does it."""
        self.replays += 1
        for target, source in zip(self.kept, inputs):
            target.copy_(source)
        results = tuple(result.clone() for result in self._call())
        for source, target in zip(self._changed, inputs[len(inputs) - len(self._changed) :]):
            target.copy_(source)
        return results
