"""The graphs of modules, each as long as its module lives unchanged."""

from __future__ import annotations

from typing import Any, Callable
from weakref import ref

from torch import nn

from .captured import Captured
from .noticing import Read, Unknown

# A module that is called as it is may change, and is looked at again with so many calls.
CALLS_UNTIL_ANOTHER_LOOK = 64


class Watching:
    """What ``capture`` makes of each module, which it does not keep alive.

    ``read`` raises :class:`Unknown` for a module of which there is to be no graph.
    """

    def __init__(
        self,
        read: Callable[[Any], Read],
        capture: Callable[[ref[nn.Module]], Captured],
        calls_until_another_look: int = CALLS_UNTIL_ANOTHER_LOOK,
    ) -> None:
        self._read = read
        self._capture = capture
        self._calls = calls_until_another_look
        self._modules: dict[int, _Watched] = {}

    def of(self, module: nn.Module, look: bool = True) -> Captured | None:
        """Its graphs; None where it is to be called.

        ``look`` is whether anything may have changed since the last time.
        """
        number = id(module)
        known = self._modules.get(number)
        if known is None or known.module() is not module or (look and not known.is_as_it_was()):
            forget = self._modules.pop
            watched = ref(module, lambda _: forget(number, None))
            known = self._modules[number] = _Watched(
                *(watched, self._read, self._capture, self._calls)
            )
        return known.graphs


class _Watched:
    """A module as it was when this was made.

    ``graphs`` is None where that cannot be told; then nothing else is kept.
    """

    def __init__(
        self,
        module: ref[nn.Module],
        read: Callable[[Any], Read],
        capture: Callable[[ref[nn.Module]], Captured],
        calls: int,
    ) -> None:
        self.module = module
        self.graphs: Captured | None = None
        self._calls_left = calls
        try:
            self._read = read(module())
        except Unknown:
            return
        self.graphs = capture(module)

    def is_as_it_was(self) -> bool:
        """Whether nothing is different but the numbers in the tensors, which a graph reads."""
        if self.graphs is None:
            self._calls_left -= 1
            return self._calls_left > 0
        return self._read.is_as_it_was()
