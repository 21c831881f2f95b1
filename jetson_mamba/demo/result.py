"""What training a model came to."""

from __future__ import annotations

import math
from typing import NamedTuple


class Trained(NamedTuple):
    """A model that has been trained: the loss of each step, and what it can do.

    ``held_out`` is the loss on text that it has not seen, ``sample`` what it wrote.
    """

    kind: str
    parameters: int
    losses: list[float]
    held_out: float
    seconds: float
    sample: str

    def first(self) -> float:
        """The mean loss of the first tenth of the steps."""
        return _mean(self.losses[: self._tenth()])

    def last(self) -> float:
        """The mean loss of the last tenth of the steps."""
        return _mean(self.losses[-self._tenth() :])

    def _tenth(self) -> int:
        return math.ceil(len(self.losses) / 10)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
