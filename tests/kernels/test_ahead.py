"""Programs that are made once, whoever asks for them."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

from jetson_mamba import cache
from jetson_mamba.kernels import ahead, compiler


class Making:
    """Makes code when it is let to, and counts."""

    def __init__(self, error: Exception | None = None) -> None:
        self.count = 0
        self.begun, self.may_end = threading.Event(), threading.Event()
        self._error = error

    def __call__(self) -> bytes:
        """Run it."""
        self.count += 1
        self.begun.set()
        assert self.may_end.wait(60)
        if self._error is not None:
            raise self._error
        return b"code"


def asked(programs: ahead.Programs, name: str, make: Any) -> tuple[threading.Thread, list[Any]]:
    found: list[Any] = []

    def ask() -> None:
        try:
            found.append(programs.code(name, make))
        except RuntimeError as error:
            found.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, found


@pytest.mark.parametrize("error", [None, RuntimeError("refused")])
def test_two_that_ask_for_the_same_have_it_made_once(error: RuntimeError | None) -> None:
    programs, making = ahead.Programs(), Making(error)
    first = asked(programs, "a", making)
    assert making.begun.wait(60)
    second = asked(programs, "a", making)
    # Who asks for another waits for neither.
    assert programs.code("b", lambda: b"other") == b"other"
    making.may_end.set()
    for thread, _ in (first, second):
        thread.join()
    right = "refused" if error else b"code"
    assert first[1] == [right]
    # The second waited, or came after the first had gone.
    assert second[1] == [right] and making.count in (1, 2)


def test_what_was_made_is_not_kept_here() -> None:
    programs = ahead.Programs()
    assert programs.code("a", lambda: b"1") == b"1"
    assert programs.code("a", lambda: b"2") == b"2"


def test_all_are_called_whatever_one_raises() -> None:
    called, all_called = [], threading.Event()

    def fails() -> None:
        called.append("fails")
        raise RuntimeError

    def ends(name: str) -> None:
        called.append(name)
        if len(called) == 4:
            all_called.set()

    ahead.begin([fails, *(lambda name=name: ends(name) for name in "abc")])
    assert all_called.wait(60)
    assert sorted(called) == ["a", "b", "c", "fails"]


def plan() -> None:
    for source in ("one", "two", "one"):
        kernel = compiler.load(f"{source}.cu", source, (("N", "1"),), 0)
        compiler.Launch(kernel, (1, 1, 1), (32, 1, 1), shared_bytes=1 << 17)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    found: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 7))
    monkeypatch.setattr(cache, "private_directory", lambda name: "kept")
    monkeypatch.setattr(ahead, "begin", found.extend)
    monkeypatch.setattr(ahead, "has_cores", lambda: True)
    return found


def test_what_a_plan_loads_is_compiled_each_once(begun: list[Any]) -> None:
    compiler.begin(plan, 0)
    assert [each.args for each in begun] == [
        (f"{source}.cu", (("N", "1"),), "sm_87") for source in ("one", "two")
    ]
    assert not [key for key in compiler._loaded if key[0] in ("one.cu", "two.cu")]


@pytest.mark.parametrize("without", ["cores", "cache"])
def test_nothing_is_begun_that_would_be_waited_for(
    without: str, begun: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if without == "cores":
        monkeypatch.setattr(ahead, "has_cores", lambda: False)
    else:
        monkeypatch.setattr(cache, "private_directory", lambda name: None)
    compiler.begin(plan, 0)
    assert begun == []
