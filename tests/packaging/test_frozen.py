"""What PyInstaller is told, asked as it asks: by an entry point, of files by their name."""

from __future__ import annotations

import pkgutil
import runpy
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Callable

import pytest

from jetson_mamba.frozen import hook_dirs

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def collect_submodules(package: str, filter: Callable[[str], bool], on_error: str) -> list[str]:
    """As PyInstaller's: the package and every module below that the filter takes."""
    path = import_module(package).__path__
    found = [each.name for each in pkgutil.walk_packages(path, f"{package}.", lambda _: None)]
    return [name for name in (package, *found) if filter(name)]


def collect_data_files(package: str, include_py_files: bool) -> list[tuple[str, str]]:
    """As PyInstaller's: every file below the package, and the folder that it goes to."""
    (folder,) = map(Path, import_module(package).__path__)
    files = [each for each in folder.rglob("*") if each.is_file()]
    return [
        (str(each), str(each.parent.relative_to(folder.parent)))
        for each in files
        if include_py_files or each.suffix != ".py"
    ]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    """What each file for PyInstaller sets, by the package that it is about."""
    hooks = ModuleType("PyInstaller.utils.hooks")
    vars(hooks).update(collect_submodules=collect_submodules, collect_data_files=collect_data_files)
    for name in ("PyInstaller", "PyInstaller.utils"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, hooks.__name__, hooks)
    (folder,) = hook_dirs()
    files = Path(folder).glob("hook-*.py")
    return {each.stem[len("hook-") :]: runpy.run_path(str(each)) for each in files}


def test_pyinstaller_finds_the_files_by_the_entry_point() -> None:
    declared = import_module("tomllib").loads(
        (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    )
    named = declared["project"]["entry-points"]["pyinstaller40"]["hook-dirs"]
    module, function = named.split(":")
    assert getattr(import_module(module), function) is hook_dirs


def test_an_application_holds_what_is_imported_by_name_and_every_file(
    told: dict[str, dict[str, Any]],
) -> None:
    ours = told["jetson_mamba"]
    hidden, files = set(ours["hiddenimports"]), {Path(source) for source, _ in ours["datas"]}
    for folder in sorted((REPOSITORY / "jetson_mamba" / "ops").iterdir()):
        if (folder / "op.py").exists():
            for module in folder.glob("[!_]*.py"):
                assert f"jetson_mamba.ops.{folder.name}.{module.stem}" in hidden
    assert not [
        name for name in hidden if name.startswith(("jetson_mamba.cli", "jetson_mamba.demo"))
    ]
    for pattern in ("vendored_overrides/mamba_ssm/**/*.py", "jetson_mamba/kernels/*.cu*"):
        needed = list(REPOSITORY.glob(pattern))
        assert needed and set(needed) <= files
    assert ours["module_collection_mode"]["jetson_mamba"] == "py"


def test_mamba_ssm_goes_in_as_the_source_of_which_copies_are_made(
    told: dict[str, dict[str, Any]],
) -> None:
    assert told["mamba_ssm"]["module_collection_mode"] == "py"
