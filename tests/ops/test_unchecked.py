"""A function whose text was not checked runs its own code. The op serves where that cannot run."""

from __future__ import annotations

import functools
import inspect
import pickle
import re
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba.dispatch.unchecked import by_name, unchecked

module = sys.modules["jetson_mamba.dispatch.unchecked"]  # in ops its name is the function's


def op(x: Tensor, scale: float = 1.0, limits: tuple[float, float] = (0.0, 1.0)) -> Any:
    return "op", float(x.sum()), scale, limits


def own(
    x: Tensor,
    scale: float = 2.0,
    limits: tuple[float, float] = (0.0, 1.0),
    *,
    own_extra: Any = None,
) -> Any:
    """What a fork says of it."""
    return "own", float(x.sum()), scale, limits


function = own
own = unchecked(own, op, "own")


@pytest.fixture(autouse=True)
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_said", set())


@pytest.fixture
def triton_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "triton_runs_on", lambda device: True)


def quietly(*arguments: Any, **keywords: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return own(*arguments, **keywords)


def test_where_triton_runs_its_own_code_does(triton_runs: None) -> None:
    assert own(torch.ones(2), 3.0, own_extra="anything") == ("own", 2.0, 3.0, (0.0, 1.0))


def test_elsewhere_the_op_serves_with_the_defaults_of_the_text() -> None:
    assert quietly(torch.ones(2)) == ("op", 2.0, 2.0, (0.0, 1.0))
    assert quietly(x=torch.ones(2), limits=(0.0, 2.0)) == ("op", 2.0, 2.0, (0.0, 2.0))


def test_one_warning_names_the_function_and_says_why() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            own(torch.ones(2))
    (warning,) = caught
    assert warning.category is RuntimeWarning
    assert f"{__name__}.own stays as it is installed" in str(warning.message)
    assert "its text is none that was checked" in str(warning.message)
    assert warning.filename == __file__


def test_no_warning_where_its_own_code_runs(triton_runs: None) -> None:
    own(torch.ones(2))


@pytest.mark.parametrize("value", [torch.ones(1), 0, False, "on", (1,)])
def test_an_argument_that_the_op_does_not_know_is_an_error_that_names_it(value: Any) -> None:
    with pytest.raises(TypeError, match="own: own_extra: expected its default, found"):
        own(torch.ones(2), own_extra=value)


@pytest.mark.parametrize("default", [None, 0.5, "off", (1, 2), torch.float32])
def test_its_default_is_none(default: Any) -> None:
    def another(x: Tensor, own_extra: Any = default) -> Any:
        raise AssertionError

    with pytest.warns(RuntimeWarning, match="another"):
        assert unchecked(another, op, "another")(torch.ones(2), default)[0] == "op"


def test_what_it_takes_in_any_number_is_held_to_the_same() -> None:
    def another(x: Tensor, limits: Any = (0.0, 1.0), *rest: Any, **more: Any) -> Any:
        raise AssertionError

    wrapped = unchecked(another, op, "another")
    with pytest.warns(RuntimeWarning, match="another"):
        assert wrapped(torch.ones(2), scale=3.0) == ("op", 2.0, 3.0, (0.0, 1.0))
    with pytest.raises(TypeError, match="another: unknown: expected its default"):
        wrapped(torch.ones(2), unknown=1)
    with pytest.raises(TypeError, match="at most 2 arguments by position, found 3"):
        wrapped(torch.ones(2), 1, 1)


class Wrapper:
    """A callable object that takes anything."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What the function gives."""
        return self.function(*arguments, **keywords)


class Unsigned(Wrapper):
    """One whose parameters cannot be told."""

    __signature__ = "of C"


WRAPPERS: dict[str, Any] = {
    "lambda": lambda f: lambda *a, **k: f(*a, **k),  # noqa: PLW0108
    "by place": lambda f: lambda *a: f(*a),  # noqa: PLW0108
    "the first": lambda f: lambda x, *a, **k: f(x, *a, **k),  # noqa: PLW0108
    "partial": functools.partial,
    "cached": functools.lru_cache(maxsize=None),
    "object": Wrapper,
    "no signature": Unsigned,
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_what_a_wrapper_takes_is_called_as_the_text_calls_it_or_else_the_op(
    wrapper: str, triton_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapped = WRAPPERS[wrapper](op)
    plain = unchecked(wrapped, op, "fork")
    assert plain(torch.ones(2), 3.0) == wrapped(torch.ones(2), 3.0)
    monkeypatch.setattr(module, "triton_runs_on", lambda device: False)
    with pytest.warns(RuntimeWarning, match=rf"{re.escape(__name__)}\.fork stays"):
        assert plain(torch.ones(2), 3.0, (0.0, 2.0)) == ("op", 2.0, 3.0, (0.0, 2.0))
    if wrapper not in ("partial", "cached"):
        other = unchecked(wrapped, op, "fork", "x", "limits", "scale")
        assert other(torch.ones(2), (0.0, 2.0), 3.0) == ("op", 2.0, 3.0, (0.0, 2.0))
    with pytest.raises(TypeError, match="fork: expected at most 3 arguments"):
        plain(torch.ones(2), 3.0, (0.0, 2.0), 1)


def test_it_is_the_function_to_whoever_looks() -> None:
    assert own.__name__ == "own" and own.__doc__ == "What a fork says of it."
    assert inspect.signature(own) == inspect.signature(function)
    assert inspect.getsource(own) == inspect.getsource(function)
    assert pickle.loads(pickle.dumps(own)) is own


def test_what_is_no_function_stays() -> None:
    assert unchecked(None, op, "none") is None  # type: ignore[arg-type]


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="torch 2.13 compiles to Python 3.13")
def test_a_graph_holds_the_op_and_the_warning_is_given_while_it_is_traced() -> None:
    def fork(x: Tensor, factor: float = 2.0, own_extra: Any = None) -> Tensor:
        raise AssertionError

    def scaled(x: Tensor, factor: float = 1.0) -> Tensor:
        return x * factor

    wrapped = unchecked(fork, scaled, "fork")
    compiled = torch.compile(lambda x: wrapped(x) + 1, backend="eager", fullgraph=True)
    with pytest.warns(RuntimeWarning, match="fork"):
        result = compiled(torch.ones(2))
    assert result.tolist() == [3.0, 3.0]


def test_arguments_are_given_by_the_names_they_stand_for() -> None:
    named = by_name(op, "limits", "x")
    assert named((1.0, 2.0), torch.ones(2)) == ("op", 2.0, 1.0, (1.0, 2.0))
    assert by_name(op, "limits", "x") is named
