"""Makes programs once, whoever asks for them: some are begun before anyone does.

To compile one takes NVRTC up to a second, in which it uses one core. So what an op is about to ask
for is begun together, each program on a thread of its own, where there are cores for that.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any, Callable, Iterable

from jetson_mamba import forks

# With fewer cores, what may not be needed after all would keep what is needed waiting.
LEAST_CORES = 4


class Programs:
    """Code by its name; two threads that ask for the same have it made once."""

    _lock: Any

    def __init__(self) -> None:
        self._making: dict[str, Future[bytes]] = {}
        forks.lock(self, "_lock")
        forks.tell(self, "forget")

    def forget(self) -> None:
        """Begin without, as a child has none of its parent's threads."""
        self._making = {}

    def code(self, name: str, make: Callable[[], bytes]) -> bytes:
        """What ``make`` returns, or raises: here, or on the thread that is at it."""
        with self._lock:
            others = self._making.get(name)
            if others is None:
                future = self._making[name] = Future()
        if others is not None:
            return others.result()
        try:
            code = make()
        except BaseException as error:
            future.set_exception(error)
            raise
        else:
            future.set_result(code)
            return code
        finally:
            with self._lock:
                if self._making.get(name) is future:
                    del self._making[name]


def begin(makes: Iterable[Callable[[], object]]) -> None:
    """Call all of these, the first of them first, on threads of their own; returns at once.

    What they raise is not heard of: whoever asks for the same has it raised.
    """
    waiting = deque(makes)

    def work() -> None:
        while True:
            try:
                make = waiting.popleft()
            except IndexError:
                return
            try:
                make()
            except Exception:
                continue

    for _ in range(min(len(waiting), _cores())):
        # Not left behind at the end of the interpreter, where NVRTC would be taken apart under it.
        thread = threading.Thread(target=work, name="jetson_mamba")
        try:
            thread.start()
        except (RuntimeError, MemoryError):  # too many, or the interpreter is at its end
            return


def has_cores() -> bool:
    """Whether what is begun is made beside what is waited for."""
    return _cores() >= LEAST_CORES


def _cores() -> int:
    """Those that this process may run on."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
