"""What a module hands to an op, so that backends that need it are decided again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from jetson_mamba.dispatch import launchers


def function() -> None:
    """Of a module with launchers."""


@pytest.fixture
def forgotten(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ops whose choices were forgotten."""
    names: list[str] = []

    def op(name: str, *order: str) -> Any:
        return SimpleNamespace(order=order, forget=lambda: names.append(name))

    made = {"one": op("one", "cuda", "triton", "pytorch"), "other": op("other", "pytorch")}
    monkeypatch.setattr(launchers, "OPS", made)
    monkeypatch.setattr(launchers, "_handed_over", {})
    return names


def test_ops_with_that_backend_are_decided_again_and_no_others(forgotten: list[str]) -> None:
    launchers.hand_over(function, function)
    assert forgotten == ["one"]
    assert launchers.launchers_of("function") is function.__globals__
    assert launchers.launchers_of("another") is None


def test_the_first_module_is_kept(forgotten: list[str]) -> None:
    launchers.hand_over(function, function)
    other: Any = eval("lambda: None", {})  # as of a module that is loaded anew
    launchers.hand_over(other, function)
    assert forgotten == ["one"]
    assert launchers.launchers_of("function") is function.__globals__
    launchers.hand_over(len, len)
    assert launchers.launchers_of("len") is None
