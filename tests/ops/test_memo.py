"""What the memory of calls keeps.

What was used least recently goes first, and nothing else is kept alive.
"""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from jetson_mamba.dispatch.memo import Memo


class Thing:
    """Something that values are about."""


def keys(memo: Memo[Any, Any]) -> set[Any]:
    return {key for key, _ in memo.items()}


def test_what_is_put_is_found_until_it_is_put_anew_or_discarded() -> None:
    memo: Memo[str, int] = Memo(3)
    assert memo.get("a") is None
    memo.put("a", 1, bytes=10)
    memo.put("b", 2, bytes=5)
    assert (memo.get("a"), memo.get("b"), len(memo), memo.bytes) == (1, 2, 2, 15)
    memo.put("a", 3, bytes=1)
    assert (memo.get("a"), len(memo), memo.bytes) == (3, 2, 6)
    memo.discard("a")
    memo.discard("never there")
    assert (memo.get("a"), "a" in memo, memo.items(), memo.bytes) == (None, False, [("b", 2)], 5)
    memo.clear()
    assert (len(memo), memo.bytes) == (0, 0)


def test_what_was_used_least_recently_goes_first() -> None:
    memo: Memo[str, str] = Memo(3)
    for key in "abc":
        memo.put(key, key)
    memo.get("a")
    memo.put("d", "d")
    assert keys(memo) == {"a", "c", "d"}
    entry = memo.find("c")
    assert entry is not None
    entry.used = memo.clock()
    memo.put("e", "e")
    assert keys(memo) == {"c", "d", "e"}


def test_what_is_idle_is_dropped_and_what_is_not_is_not() -> None:
    memo: Memo[str, str] = Memo(3)
    memo.put("a", "a")
    memo.put("b", "b")
    assert not memo.drop_idle(5)
    for _ in range(10):
        memo.get("a")
    assert memo.drop_idle(5)
    assert keys(memo) == {"a"}
    assert not memo.drop_idle(5)
    memo.clear()
    assert not memo.drop_idle(0)


def test_an_entry_goes_with_any_of_what_it_is_about_and_keeps_none_of_it() -> None:
    memo: Memo[str, str] = Memo(9)
    one, other = Thing(), Thing()
    memo.put("of both", "x", bytes=3, while_there_are=(one, other))
    memo.put("of one", "y", while_there_are=(one,))
    memo.put("of none", "z")
    seen = weakref.ref(other)
    del other
    gc.collect()
    assert seen() is None
    assert (keys(memo), memo.bytes) == ({"of one", "of none"}, 0)
    # Put anew, it is no longer about that.
    memo.put("of one", "y")
    del one
    gc.collect()
    assert keys(memo) == {"of one", "of none"}


def test_what_ends_while_another_thread_has_the_memory_waits_for_nobody() -> None:
    """A finalizer runs in any thread and on any line."""
    memo: Memo[str, object] = Memo(9)
    thing = Thing()
    memo.put("about it", 1, while_there_are=(thing,))
    has_it, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with memo._lock:
            has_it.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    has_it.wait(10)
    del thing
    gc.collect()
    assert "about it" in memo
    leave.set()
    thread.join()
    memo.put("another", 2)
    assert keys(memo) == {"another"}


def test_a_signal_in_the_midst_of_it_may_use_it() -> None:
    memo: Memo[str, object] = Memo(2)
    for key in "ab":
        memo.put(key, key)
    with memo._lock:
        memo.put("c", "c")
        memo.discard("b")
        assert memo.items() == [("c", "c")]


def test_a_value_that_comes_back_when_it_goes_finds_no_lock() -> None:
    memo: Memo[int, object] = Memo(1)

    class ComesBack:
        def __del__(self) -> None:
            memo.discard(0)
            memo.put(2, None)

    memo.put(0, ComesBack())
    memo.put(1, None)
    assert keys(memo) == {2}


@pytest.mark.parametrize("threads", [8])
def test_threads_share_it(threads: int) -> None:
    memo: Memo[int, int] = Memo(16)
    errors: list[BaseException] = []

    def run(start: int) -> None:
        try:
            for turn in range(2000):
                key = (start * 7 + turn) % 40
                found = memo.get(key)
                assert found in (None, key)
                memo.put(key, key, bytes=key)
                if turn % 3 == 0:
                    memo.discard(key)
                memo.drop_idle(100)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(start,)) for start in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert errors == []
    assert len(memo) <= 16
    assert memo.bytes == sum(key for key, _ in memo.items())
