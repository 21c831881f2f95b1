"""Ops of strings, for the tests of how a backend is picked."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any, Callable

import pytest

from jetson_mamba.dispatch.backends import Op, Selection
from jetson_mamba.errors import Unavailable

Load = Callable[[str], str]
Make = Callable[..., "Op[str, str]"]


def small_op(
    monkeypatch: pytest.MonkeyPatch,
    name: str = "thing",
    *,
    trial: Callable[[str, str], None] = lambda _, __: None,
    **loads: Load,
) -> Op[str, str]:
    """An op whose backends are modules made of the given functions, in that order."""
    package: Any = ModuleType(f"package_of_{name}")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, package.__name__, package)
    for backend, load in loads.items():
        module = ModuleType(f"{package.__name__}.{backend}")
        module.__dict__["load"] = load
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return Op(name, package.__name__, tuple(loads), trial)


def serve(case: str) -> str:
    """A backend that works."""
    return f"served {case}"


def unavailable(case: str) -> str:
    """A backend that is not for this case."""
    raise Unavailable(f"not for {case}")


def broken(case: str) -> str:
    """A backend that is installed and does not load."""
    raise ImportError("x.so: undefined symbol: _ZN3c10\nstack\nstack")


def named(backend: str) -> Selection:
    """What a user selects by a name."""
    return Selection(backend, "the test", "end the test")
