"""A module is made as its own loader makes it."""

from __future__ import annotations

from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from jetson_mamba.hook import loader


@pytest.mark.parametrize("makes", [True, False])
def test_the_original_loader_makes_the_module_where_it_makes_any(makes: bool) -> None:
    asked: list[ModuleSpec] = []
    made = ModuleType("some.module")

    def create_module(spec: ModuleSpec) -> ModuleType:
        asked.append(spec)
        return made

    original: Any = SimpleNamespace(create_module=create_module) if makes else SimpleNamespace()
    spec = ModuleSpec("some.module", original)
    finder: Any = SimpleNamespace()
    found = loader.Loader(finder, spec, "some.module")
    assert found.create_module(spec) is (made if makes else None)
    assert asked == ([spec] if makes else [])
