"""A backend that is named for an op serves it, or its calls are errors that say what to do."""

from __future__ import annotations

import sys
import warnings
from typing import Callable

import pytest

from jetson_mamba.dispatch.backends import (
    BackendWarning,
    Choice,
    Selection,
)
from tests.ops.small_op import Make, broken, named, serve, unavailable


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
