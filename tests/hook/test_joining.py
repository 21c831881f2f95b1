"""What becomes of a module of transformers that is joined to the ops."""

from __future__ import annotations

import sys
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from jetson_mamba.finder import JOINED, Finder
from jetson_mamba.hook.loader import Joining
from jetson_mamba.ops.decoding import mixers
from jetson_mamba.ops.decoding.recorded import with_gradients

NAME = JOINED[0]


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[ModuleType]:
    """The modules that were."""
    found: list[ModuleType] = []
    monkeypatch.setattr(mixers, "join", found.append)
    monkeypatch.setitem(sys.modules, "mamba_ssm", ModuleType("mamba_ssm"))
    return found


def found_spec(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str = NAME) -> Any:
    """The spec of a module of that name, whose file is in the folder."""
    path = folder / "modeling.py"
    path.write_text("VALUE = 7\n")
    finder = Finder("on", stand_in=True)

    class After:
        @staticmethod
        def find_spec(name: str, path_: Any = None, target: Any = None) -> Any:
            """As the finder of paths does."""
            return spec_from_file_location(name, path)

    monkeypatch.setattr(sys, "meta_path", [finder, After])
    return finder.find_spec(name, [str(folder)])


def test_a_module_runs_as_it_is_and_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: list[ModuleType]
) -> None:
    spec = found_spec(tmp_path, monkeypatch)
    assert isinstance(spec.loader, Joining)
    assert spec.loader.get_source(NAME) == "VALUE = 7\n"
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert vars(module)["VALUE"] == 7
    assert joined == [module]
    assert type(module.__loader__) is type(module.__spec__.loader) is SourceFileLoader  # type: ignore[union-attr]
    assert module.__file__ == str(tmp_path / "modeling.py")


def test_without_mamba_ssm_nothing_is_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: list[ModuleType]
) -> None:
    monkeypatch.delitem(sys.modules, "mamba_ssm")
    spec = found_spec(tmp_path, monkeypatch)
    spec.loader.exec_module(module_from_spec(spec))
    assert joined == []


def test_a_module_that_cannot_be_joined_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, joined: list[ModuleType]
) -> None:
    monkeypatch.setattr(mixers, "join", lambda module: 1 / 0)
    spec = found_spec(tmp_path, monkeypatch)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    assert vars(module)["VALUE"] == 7


@pytest.mark.parametrize("name", ["elsewhere.models.mamba.modeling_mamba", "modeling_mamba2"])
def test_modules_of_other_packages_are_none_of_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert found_spec(tmp_path, monkeypatch, name) is None


def test_transformers_finds_functions_that_record_their_gradients(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of states, of the two packages; and whatever else it looks for is as it was."""
    name = "transformers.integrations.hub_kernels"
    assert name in JOINED
    spec = found_spec(tmp_path, monkeypatch, name)
    (tmp_path / "modeling.py").write_text(
        "def resolve_internal_import(package, path):\n"
        "    return getattr(package, path.rpartition('.')[2], None)\n"
    )
    module: Any = module_from_spec(spec)
    spec.loader.exec_module(module)
    extensions: list[bool] = []
    built: Any = ModuleType("selective_scan_cuda")
    monkeypatch.setitem(sys.modules, "selective_scan_cuda", built)

    def given(name: str, function: Any, extension: bool) -> Any:
        extensions.append(extension)
        return recorded(name, function, extension)

    recorded = with_gradients
    monkeypatch.setattr("jetson_mamba.ops.decoding.recorded.with_gradients", given)
    package: Any = ModuleType("mamba_ssm")
    package.selective_scan_fn = lambda *tensors: "kernel"
    package.mamba_inner_fn = lambda *tensors: "fused"
    find = module.resolve_internal_import
    found = find(package, "ops.selective_scan_fn")
    assert found is not package.selective_scan_fn
    assert found() == "kernel"
    assert find(package, "ops.mamba_inner_fn") is package.mamba_inner_fn
    assert find(package, "ops.absent") is None
    find(package, "ops.selective_scan_fn")
    built.__jetson_mamba_reason__ = None
    find(package, "ops.selective_scan_fn")
    assert extensions[-2:] == [True, False]
    package.__name__ = "another"
    assert find(package, "ops.selective_scan_fn") is package.selective_scan_fn
