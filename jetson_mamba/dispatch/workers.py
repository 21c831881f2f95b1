"""Independent parts of an op on a CPU, each from end to end on a thread of its own.

torch divides every operation among threads, which wait for each other at its end. An op of
hundreds of short operations waits as often, and where other programs use the cores, each wait is as
long as the system lets a thread stand: milliseconds, for microseconds of work. Here threads meet
once a call, however many operations it has, and no operation is divided again. Of short calls the
caller takes parts too, one after another, and does not wait for one that nobody has begun.

There are as many threads as torch has for the caller (``torch.get_num_threads()``), made at the
first call that has use for them, and made anew in a forked child.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache
from itertools import count
from time import perf_counter, thread_time
from typing import Any, Callable, Generic, Sequence, TypeVar

import torch

from jetson_mamba import forks

from .autocast import without_autocast

Result = TypeVar("Result")

# torch runs an operation on fewer elements than this on the thread that calls it.
GRAIN = 1 << 15
# So many short calls are their caller's alone after one in which it waited, for threads, or for
# Python that these hold, for longer than it worked: other programs use the cores.
CALLS_ALONE = 50


def threads_for(elements: int) -> int:
    """How many threads an op may have whose operations are on so many elements; 1 is the caller's.

    A profiler sees the operations of the thread that it was started on, so then it is that one.
    """
    if elements < GRAIN or torch._C._autograd._profiler_enabled():
        return 1
    return torch.get_num_threads()


def run(
    parts: Sequence[Callable[[], Result]], threads: int, *, short: bool = False
) -> list[Result]:
    """What each part returns, in their order; raises what the first to fail raises.

    ``threads`` is what :func:`threads_for` gave. No part may record gradients or call this
    function; each runs in the caller's inference mode, and without autocast. With ``short`` the
    caller takes some; then no part may have products or ``exp``, which MKL would divide for it.
    """
    if threads == 1:
        return [part() for part in parts]
    work = _Work(parts)
    short = short and _limit() is not None
    if short and _POOL.calls_alone > 0:
        _POOL.calls_alone -= 1
        undivided(work.take)
        return work.results()
    started, worked = perf_counter(), thread_time()
    try:
        pool, others = _POOL.of(threads), len(parts) - int(short)
        futures = [pool.submit(work.take) for _ in range(min(threads, others))]
    except RuntimeError:
        # At the end of the interpreter no thread starts. A part that runs twice writes the same.
        return [part() for part in parts]
    try:
        if short:
            undivided(work.take)
        else:
            wait(futures)
    finally:
        for future in futures:
            if not future.cancel():
                future.result()
    if short and perf_counter() - started > 2 * (thread_time() - worked):
        _POOL.calls_alone = CALLS_ALONE
    return work.results()


class _Work(Generic[Result]):
    """Parts that several threads take, one after another."""

    def __init__(self, parts: Sequence[Callable[[], Result]]) -> None:
        self._parts = parts
        self._ahead = count()
        self._inference = torch.is_inference_mode_enabled()
        self._found: dict[int, Result] = {}
        self._errors: dict[int, BaseException] = {}

    def take(self) -> None:
        """Run parts until none is left, or one has failed."""
        with torch.inference_mode(self._inference), torch.no_grad(), without_autocast(_CPU):
            for number in self._ahead:
                if number >= len(self._parts) or self._errors:
                    return
                try:
                    self._found[number] = self._parts[number]()
                except BaseException as error:
                    self._errors[number] = error
                    return

    def results(self) -> list[Result]:
        """What all parts returned; raises what the first to fail raised."""
        if self._errors:
            raise self._errors[min(self._errors)]
        return [self._found[number] for number in range(len(self._parts))]


_CPU = torch.device("cpu")


def undivided(call: Callable[..., Result], *given: Any) -> Result | None:
    """What ``call(*given)`` returns, nothing of which is divided among threads.

    Nothing of torch's own and of oneDNN; MKL has a setting of its own. None where that cannot be
    had; then it has not been called. ``torch.set_num_threads`` would say
    so for the whole process; this is for the calling thread alone.
    """
    threads = torch.get_num_threads()
    if threads == 1:
        return call(*given)
    limit = _limit()
    if limit is None:
        return None
    limit(1)
    try:
        return call(*given)
    finally:
        limit(threads)


@lru_cache(maxsize=None)
def _limit() -> Callable[[int], None] | None:
    """OpenMP's own setting of a thread, where torch runs on that; None elsewhere."""
    try:
        limit: Callable[[int], None] = ctypes.PyDLL(None).omp_set_num_threads
    except (AttributeError, OSError, TypeError):
        return None
    threads = torch.get_num_threads()
    # Of several runtimes in a process it may be another's.
    try:
        limit(threads + 1)
        return limit if torch.get_num_threads() == threads + 1 else None
    finally:
        limit(threads)


class _Pool:
    """The threads that there are."""

    lock: Any

    def __init__(self) -> None:
        self._threads = 0
        self.calls_alone = 0
        self._executor: ThreadPoolExecutor | None = None
        forks.lock(self, "lock")
        forks.tell(self, "forget")

    def of(self, threads: int) -> ThreadPoolExecutor:
        """So many of them; raises RuntimeError where none can be started."""
        with self.lock:
            if self._executor is None or self._threads != threads:
                # What the one before was given it still does.
                self._executor, self._threads = _started(threads), threads
            return self._executor

    def forget(self) -> None:
        """Begin without, as a child has none of its parent's."""
        self._executor = None
        self.calls_alone = 0


def _started(threads: int) -> ThreadPoolExecutor:
    """Threads on each of which torch divides nothing."""
    executor = ThreadPoolExecutor(threads, "jetson_mamba")
    all_there = forks.barrier(threads)

    def alone() -> None:
        # A thread takes over the process's number when it first asks, and keeps its own after.
        torch.get_num_threads()
        torch.set_num_threads(1)
        all_there.wait()

    try:
        for start in [executor.submit(alone) for _ in range(threads)]:
            start.result()
    except BaseException:
        all_there.abort()
        executor.shutdown(wait=False)
        raise
    finally:
        # A number that is set is also that of threads to come.
        torch.set_num_threads(threads)
    return executor


_POOL = _Pool()
