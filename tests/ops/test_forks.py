"""A forked child goes on without what only its parent has.

No lock is held in it by a thread that it has not, and no graph is its own.
"""

from __future__ import annotations

import ast
import gc
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest
import torch

import jetson_mamba
from jetson_mamba import forks
from jetson_mamba.dispatch.apart import Apart
from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.replay import captured
from jetson_mamba.replay.captured import Captured
from tests.ops.imitated import Imitated
from tests.ops.small_op import small_op

PACKAGE = Path(jetson_mamba.__file__).parent
LOCKS = {"Lock", "RLock", "Condition", "Semaphore", "BoundedSemaphore", "Event", "Barrier"}

needs_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")


def test_the_thread_of_a_trial_has_ended_where_its_result_is_there() -> None:
    """Python 3.12 warns who forks while there is another."""
    for _ in range(20):
        before = threading.active_count()
        trial = Apart(threading.get_ident)
        trial.start()
        assert trial.result() != threading.get_ident()
        assert threading.active_count() == before


def in_child(function: Callable[[], bool], seconds: float = 20) -> bool:
    """What the function returns in a forked child; False where that does not end."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if function() else 1)
        finally:
            os._exit(2)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


class Holder:
    """Has locks of both kinds."""

    one: Any
    other: Any

    def __init__(self) -> None:
        self.told: list[int] = []
        forks.lock(self, "one")
        forks.lock(self, "other", threading.RLock)
        forks.tell(self, "hear")

    def hear(self) -> None:
        """Note the process."""
        self.told.append(os.getpid())


@needs_forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_lock_that_another_thread_holds_is_free_in_the_child() -> None:
    holder, held, leave = Holder(), threading.Event(), threading.Event()

    def hold() -> None:
        with holder.one, holder.other:
            held.set()
            leave.wait(30)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    free = in_child(lambda: holder.one.acquire(timeout=1) and holder.other.acquire(timeout=1))
    leave.set()
    thread.join()
    assert free


@needs_forks
def test_who_keeps_what_a_child_cannot_use_is_told_in_each_child() -> None:
    holder = Holder()
    assert in_child(lambda: holder.told == [os.getpid()])
    assert holder.told == []


def test_nothing_is_kept_of_an_owner_that_is_gone() -> None:
    gc.collect()
    before = len(forks._locks), len(forks._told)
    holders = [Holder() for _ in range(3)]
    assert len(forks._locks) == before[0] + 6
    del holders
    gc.collect()
    assert (len(forks._locks), len(forks._told)) == before


@needs_forks
def test_a_child_may_fork_while_it_holds_a_lock_itself() -> None:
    holder = Holder()

    def run() -> bool:
        with holder.other:
            pass
        return True

    with holder.one:
        assert in_child(run)


@needs_forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_chooses_a_backend_that_another_thread_was_choosing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    choosing, leave = threading.Event(), threading.Event()

    def load(case: str) -> str:
        choosing.set()
        if os.getpid() == parent:
            leave.wait(30)
        return "loaded"

    parent = os.getpid()
    op = small_op(monkeypatch, only=load)
    thread = threading.Thread(target=op.implementation, args=("a",))
    thread.start()
    choosing.wait(10)
    chosen = in_child(lambda: op.implementation("a") == "loaded")
    leave.set()
    thread.join()
    assert chosen
    assert op.implementation("a") == "loaded"


@needs_forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_memory_goes_on_in_a_child_whoever_used_it() -> None:
    memo: Memo[int, int] = Memo(8)
    stop = threading.Event()

    def use() -> None:
        number = 0
        while not stop.is_set():
            memo.put(number % 20, number)
            number += 1

    def go_on() -> bool:
        memo.put(100, 100)
        return memo.get(100) == 100 and len(memo.items()) <= 8

    thread = threading.Thread(target=use)
    thread.start()
    try:
        assert all(in_child(go_on) for _ in range(10))
    finally:
        stop.set()
        thread.join()


@needs_forks
def test_graphs_are_not_used_in_a_child(imitated: list[Imitated]) -> None:
    call = Captured(lambda inputs, weights: (inputs[0] * 2,))
    x = torch.ones(3)

    def replayed() -> bool:
        before = imitated[0].replays
        assert call((x,), ())[0].tolist() == [2.0] * 3
        return imitated[0].replays > before

    for _ in range(3):
        call((x,), ())
    assert replayed()
    assert in_child(lambda: captured.MEMORY.graphs == 0 and not replayed())
    assert replayed()


def locks_made_in(path: Path) -> list[str]:
    """Where a file makes a lock by itself, or names one otherwise than as a kind."""
    calls = [each for each in ast.walk(ast.parse(path.read_text())) if isinstance(each, ast.Call)]
    return [f"{path.relative_to(PACKAGE)}:{call.lineno}" for call in calls if is_a_lock(call.func)]


def is_a_lock(function: ast.expr) -> bool:
    if isinstance(function, ast.Name):
        return function.id in LOCKS
    return (
        isinstance(function, ast.Attribute)
        and function.attr in LOCKS
        and isinstance(function.value, ast.Name)
        and function.value.id == "threading"
    )


def test_every_lock_of_the_package_is_made_in_one_place() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 50
    elsewhere = [path for path in files if path != PACKAGE / "forks.py"]
    assert [found for path in elsewhere for found in locks_made_in(path)] == []


def test_a_lock_that_is_made_elsewhere_is_found(tmp_path: Path) -> None:
    path = SimpleNamespace(
        read_text=lambda: "import threading\na = 1\nb = threading.RLock()\n",
        relative_to=lambda _: "x.py",
    )
    assert locks_made_in(path) == ["x.py:3"]  # type: ignore[arg-type]
