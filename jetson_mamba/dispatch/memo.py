"""A bounded memory for what calls remember, from which the least recently used goes first.

Choices, plans, recordings and graphs are kept in memories of this kind, each under a key of
everything that decides it. The bound is for programs that call with ever new sizes. An entry must
not keep an object of the caller's alive: it can name such objects instead, and is removed when one
of them is freed.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import count
from typing import Any, Callable, Generic, Hashable, Iterable, TypeVar
from weakref import ref

from jetson_mamba import forks

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class Entry(Generic[Value]):
    """A value, and what decides how long it stays."""

    __slots__ = ("bytes", "used", "value", "watches")

    def __init__(self, value: Value, bytes: int, used: int) -> None:
        self.value = value
        self.bytes = bytes
        # The time of its last use, by the clock of the memory.
        self.used = used
        self.watches: tuple[ref[Any], ...] = ()


class Memo(Generic[Key, Value]):
    """At most ``most`` values by their keys, from any number of threads.

    Reading takes no lock. ``find`` is the least that it can cost: it gives the :class:`Entry` or
    None, and calls no Python; whoever uses it says ``entry.used = memo.clock()``.
    """

    find: Callable[[Key], Entry[Value] | None]
    clock: Callable[[], int]
    _lock: Any

    def __init__(self, most: int) -> None:
        self.most = most
        self.bytes = 0
        self._entries: dict[Key, Entry[Value]] = {}
        # Keys that are to go: garbage may be collected, and something end with it, in the midst of
        # any line of this.
        self._leaving: deque[Key] = deque()
        self.find = self._entries.get
        self.clock = count(1).__next__
        forks.lock(self, "_lock")

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, key: Key) -> bool:
        return key in self._entries

    def get(self, key: Key) -> Value | None:
        """The value of a key, which has been used now; None where there is none."""
        entry = self.find(key)
        now = self.clock()
        if entry is None:
            return None
        entry.used = now
        return entry.value

    def put(
        self, key: Key, value: Value, bytes: int = 0, while_there_are: Iterable[object] = ()
    ) -> Value:
        """Remember a value, which takes that many bytes of what the memory is to be told.

        It goes when any of ``while_there_are`` does, to which ``value`` must not refer.
        """
        entry = Entry(value, bytes, self.clock())
        leave = self.discard
        entry.watches = tuple(ref(each, lambda _: leave(key)) for each in while_there_are)
        gone = []
        with self._lock:
            gone.append(self._pop(key))
            self._entries[key] = entry
            self.bytes += bytes
            while len(self._entries) > max(1, self.most):
                gone.append(self._pop(self._oldest()))
        # What goes with them may take long, or come back here.
        del gone
        self._settle()
        return value

    def drop_idle(self, uses: int) -> bool:
        """Forget the value that was used least recently, if not within so many uses of others."""
        with self._lock:
            if not self._entries:
                return False
            oldest = self._oldest()
            if self.clock() - self._entries[oldest].used <= uses:
                return False
            gone = self._pop(oldest)
        del gone
        self._settle()
        return True

    def discard(self, key: Key) -> None:
        """Forget a key, if it is there; to be called from anywhere, also by a finalizer."""
        self._leaving.append(key)
        self._settle()

    def clear(self) -> None:
        """Forget all."""
        self._leaving += [*self._entries]
        self._settle()

    def items(self) -> list[tuple[Key, Value]]:
        """Keys and values as they are now, first that which came first."""
        with self._lock:
            return [(key, entry.value) for key, entry in [*self._entries.items()]]

    def _oldest(self) -> Key:
        """The key of what was used least recently."""
        return min([*self._entries.items()], key=lambda item: item[1].used)[0]

    def _pop(self, key: Key) -> Entry[Value] | None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self.bytes -= entry.bytes
        return entry

    def _settle(self) -> None:
        """Let go what is to go; whoever holds the lock does it after that, and nobody waits."""
        while self._leaving and self._lock.acquire(blocking=False):
            gone: list[object] = []
            try:
                with suppress(IndexError):
                    while True:
                        gone.append(self._pop(self._leaving.popleft()))
            finally:
                self._lock.release()
            del gone
