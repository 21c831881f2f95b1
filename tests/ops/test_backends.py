"""How an op picks its backend: in order, once for each case, and loud only where it must be."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from functools import partial
from typing import Callable

import pytest

from jetson_mamba.ops.backends import BackendWarning, Choice, Op, Selection, first_line
from tests.ops.small_op import broken, serve, small_op, unavailable

Make = Callable[..., "Op[str, str]"]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """An op whose backends are modules made of the given functions, in that order."""
    return partial(small_op, monkeypatch)


def test_the_first_backend_that_serves_is_used(make: Make) -> None:
    op = make(first=unavailable, second=serve, third=broken)
    assert op.implementation("gpu") == "served gpu"
    choice = op.choices()["gpu"]
    assert choice == ("second", (("first", "not for gpu"),))


def test_a_backend_is_chosen_once_for_each_case(make: Make) -> None:
    loaded = []

    def load(case: str) -> str:
        loaded.append(case)
        return case

    op = make(only=load)
    for case in ("a", "b", "a", "b", "a"):
        assert op.implementation(case) == case
    assert loaded == ["a", "b"]
    assert set(op.choices()) == {"a", "b"}


def test_threads_that_come_together_choose_once(make: Make) -> None:
    loaded = []

    def load(case: str) -> str:
        loaded.append(case)
        time.sleep(0.02)
        return case

    op = make(only=load)
    threads = [threading.Thread(target=op.implementation, args=("a",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loaded == ["a"]


def test_a_backend_that_this_installation_lacks_is_passed_over(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    op = make(first=serve, second=serve)
    monkeypatch.delitem(sys.modules, "package_of_thing.first")
    assert op.implementation("a") == "served a"
    assert op.choices()["a"].passed_over == (("first", "not part of this installation"),)


def test_a_module_that_a_backend_lacks_is_not_taken_for_the_backend(make: Make) -> None:
    def load(case: str) -> str:
        raise ModuleNotFoundError("No module named 'absent'", name="absent")

    op = make(first=load, second=serve)
    with pytest.warns(BackendWarning, match="No module named 'absent'"):
        op.implementation("a")


def test_what_is_broken_is_said_once_and_together(make: Make) -> None:
    def refused(implementation: str, case: str) -> None:
        if implementation == "bad":
            raise RuntimeError("no kernel image is available")

    op = make(first=broken, second=unavailable, third=lambda case: "bad", last=serve, trial=refused)
    with pytest.warns(BackendWarning) as caught:
        assert op.implementation("a") == "served a"
    (warning,) = caught
    assert "'first' (ImportError: x.so: undefined symbol: _ZN3c10); 'third'" in str(warning.message)
    assert "'last' is used" in str(warning.message) and "stack" not in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert op.implementation("b") == "served b"


def test_what_breaks_later_is_said_too(make: Make) -> None:
    def load(case: str) -> str:
        raise OSError(case)

    op = make(first=lambda case: broken(case) if case == "a" else unavailable(case), second=serve)
    with pytest.warns(BackendWarning, match="first"):
        op.implementation("a")
    op = make(first=lambda case: serve(case) if case == "a" else load(case), second=serve)
    assert op.implementation("a") == "served a"
    with pytest.warns(BackendWarning, match="OSError: b"):
        op.implementation("b")


def test_a_warning_that_is_an_error_does_not_undo_the_choice(make: Make) -> None:
    op = make(first=broken, second=serve)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(BackendWarning):
            op.implementation("a")
        assert op.implementation("a") == "served a"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Expected u.is_cuda() to be true, but got false.  (Could this error ..."),
        NotImplementedError("Could not run 'lib::op' with arguments from the 'CPU' backend."),
    ],
)
def test_an_extension_that_is_not_for_this_device_is_passed_over_in_silence(
    make: Make, error: Exception
) -> None:
    def trial(implementation: str, case: str) -> None:
        if implementation == "gpu only":
            raise error

    op = make(first=lambda case: "gpu only", second=serve, trial=trial)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert op.implementation("cpu") == "served cpu"
    assert str(error)[:20] in op.choices()["cpu"].passed_over[0][1]


def test_where_nothing_serves_every_reason_is_given(make: Make) -> None:
    op = make(first=unavailable, second=broken)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"first: not for a; second: ImportError: x\.so"):
            op.implementation("a")
    assert op.choices() == {}


def test_the_first_line_of_an_error_stands_for_it() -> None:
    assert first_line(RuntimeError("\n CUDA error: x\nstack")) == "CUDA error: x"
    assert first_line(RuntimeError()) == "no message"


def named(backend: str) -> Selection:
    return Selection(backend, "the test", "end the test")


def test_a_backend_that_is_named_serves_whatever_comes_before_it(make: Make) -> None:
    op = make(first=serve, second=lambda case: f"second {case}")
    assert op.implementation("a") == "served a"
    op.select(named("second"))
    assert op.implementation("a") == "second a"
    assert op.choices() == {"a": Choice("second", ())}
    assert op.selection == named("second")
    op.select(None)
    assert op.implementation("a") == "served a"
    assert op.choices() == {"a": Choice("first", ())}


def test_each_backend_that_is_named_is_loaded_once_for_a_case(make: Make) -> None:
    loaded = []

    def load(case: str) -> str:
        loaded.append(case)
        return case

    op = make(first=serve, second=load)
    for _ in range(3):
        op.select(named("second"))
        assert op.implementation("a") == "a"
        op.select(None)
        assert op.implementation("a") == "served a"
    assert loaded == ["a"]


@pytest.mark.parametrize(
    ("load", "reason"),
    [(unavailable, "not for a"), (broken, "ImportError: x.so: undefined symbol: _ZN3c10")],
)
def test_a_backend_that_is_named_and_cannot_serve_is_an_error_that_says_what_to_do(
    make: Make, load: Callable[[str], str], reason: str
) -> None:
    op = make(first=load, second=serve, third=serve)
    op.select(named("first"))
    for _ in range(2):
        with pytest.raises(RuntimeError) as caught:
            op.implementation("a")
        assert str(caught.value) == (
            f"thing: the backend 'first', asked for by the test, cannot serve a: {reason}. "
            "Name another (second, third), or end the test"
        )
    assert op.choices() == {}
    op.select(None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BackendWarning)
        assert op.implementation("a") == "served a"


def test_a_backend_that_is_named_is_tried_before_it_is_used(make: Make) -> None:
    def wrong(implementation: str, case: str) -> None:
        raise RuntimeError("the results are wrong")

    op = make(first=serve, second=serve, trial=wrong)
    op.select(named("second"))
    with pytest.raises(RuntimeError, match="RuntimeError: the results are wrong"):
        op.implementation("a")


@pytest.mark.parametrize("selection", [None, named("second")])
def test_a_call_pays_for_one_dictionary_lookup_whatever_is_named(
    selection: Selection | None, make: Make
) -> None:
    """No function is called but ``implementation``, as the interpreter's own profiler sees it."""
    op = make(first=serve, second=serve)
    op.select(selection)
    op.implementation("a")
    events: list[tuple[str, str]] = []
    sys.setprofile(lambda frame, event, _: events.append((event, frame.f_code.co_name)))
    try:
        op.implementation("a")
    finally:
        sys.setprofile(None)
    assert [name for event, name in events if event == "call"] == ["implementation"]
