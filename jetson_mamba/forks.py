"""Locks that are free again in a forked child, whatever another thread of its parent held.

A child has one thread, the one that forked. A lock that another thread held in that moment would
stay locked in the child for ever, and a handle of the GPU is good only in the process that made it.
So every lock of this package is made here, and made anew in a child; whatever keeps handles of the
GPU is told of the fork, and drops them in the child.
"""

from __future__ import annotations

import os
import threading
from itertools import count
from typing import Any, Callable
from weakref import ref

_numbers = count()
# Owner, attribute and kind of every lock.
_locks: dict[int, tuple[ref[Any], str, Callable[[], Any]]] = {}
_told: dict[int, tuple[ref[Any], str]] = {}


def lock(owner: object, name: str, kind: Callable[[], Any] = threading.RLock) -> Any:
    """Set the attribute ``name`` of ``owner`` to a lock, here and in each child; returns it.

    A thread may take it while it has it: signals and finalizers run in the midst of any line.
    """
    made = kind()
    setattr(owner, name, made)
    _register(_locks, owner, name, kind)
    return made


def barrier(threads: int) -> threading.Barrier:
    """One that a child cannot meet: it is gone when the call that makes it returns."""
    return threading.Barrier(threads)


def tell(owner: object, method: str) -> None:
    """Call the method of that name, without arguments, in each child, as long as its owner is."""
    _register(_told, owner, method)


def _register(registry: dict[int, Any], owner: object, *rest: Any) -> None:
    number = next(_numbers)
    forget = registry.pop
    registry[number] = (ref(owner, lambda _: forget(number, None)), *rest)


def _in_child() -> None:
    for reference, name, kind in [*_locks.values()]:
        owner = reference()
        if owner is not None:
            setattr(owner, name, kind())
    for reference, method in [*_told.values()]:
        owner = reference()
        if owner is not None:
            getattr(owner, method)()


if hasattr(os, "register_at_fork"):  # not on Windows, which has no forks
    os.register_at_fork(after_in_child=_in_child)
