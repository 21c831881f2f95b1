"""Startup files are where Python looks for them.

Where they cannot be written or removed, the file is named.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from pathlib import Path

import pytest

import jetson_mamba
from jetson_mamba.errors import CannotRun
from jetson_mamba.startup import files


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The folders of an environment, none of them the one of these tests."""
    found = {name: tmp_path / name for name in ("pure", "platform", "system", "user")}
    for path in found.values():
        path.mkdir()
    paths = {"purelib": str(found["pure"]), "platlib": str(found["platform"])}
    monkeypatch.setattr(sysconfig, "get_path", paths.get)
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(found["system"])])
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(found["user"]))
    monkeypatch.setattr(site, "ENABLE_USER_SITE", True)
    return found


def test_python_looks_in_the_environments_own_folder_first_and_in_the_users_last(
    places: dict[str, Path],
) -> None:
    assert files.folders() == [str(path) for path in places.values()]


@pytest.mark.parametrize("enabled", [False, None])
def test_the_users_folder_counts_where_python_reads_it(
    enabled: bool | None, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not in a virtual environment, and not for a process of another user's rights."""
    (places["user"] / files.NAMES[0]).write_text("import jetson_mamba\n")
    assert [file.path for file in files.installed()] == [str(places["user"] / files.NAMES[0])]
    monkeypatch.setattr(site, "ENABLE_USER_SITE", enabled)
    assert files.installed() == []
    assert str(places["user"]) not in files.folders()


def test_files_are_written_beside_the_package_where_python_looks_there(
    places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = places["user"] / "jetson_mamba" / "__init__.py"
    monkeypatch.setattr(jetson_mamba, "__file__", str(beside))
    assert files.enable() == [str(places["user"] / name) for name in files.NAMES]
    assert files.enable() == []
    monkeypatch.setattr(jetson_mamba, "__file__", str(places["user"].parent / "src" / "x" / "y.py"))
    assert files.enable() == [str(places["pure"] / name) for name in files.NAMES]
    assert all(file.packaged for file in files.installed())
    assert files.disable() == [
        str(places[folder] / name) for folder in ("pure", "user") for name in files.NAMES
    ]
    assert files.installed() == []


@pytest.mark.parametrize("call", ["unlink", "replace"])
def test_a_file_that_cannot_be_removed_or_written_is_named(
    call: str, places: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: str, *_: str) -> None:
        if os.path.basename(path).startswith("jetson_mamba"):
            raise PermissionError(1, "Operation not permitted", path)

    changed = files.enable()
    if call == "replace":
        (places["pure"] / files.NAMES[0]).write_text("import jetson_mamba\n")
    monkeypatch.setattr(os, call, refused)
    action, expected = {
        "unlink": (files.disable, "file that can be removed"),
        "replace": (files.enable, "folder that can be written"),
    }[call]
    with pytest.raises(CannotRun) as raised:
        action()
    assert str(raised.value) == f"{changed[0]}: Operation not permitted; expected a {expected}"
    assert sorted(path.name for path in places["pure"].iterdir()) == sorted(files.NAMES)


def test_what_python_3_15_calls_activates_the_hook_where_it_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from jetson_mamba import startup
    from jetson_mamba.startup import _jetson_mamba_start

    called: list[bool] = []
    monkeypatch.setattr(startup, "main", lambda: called.append(True))
    _jetson_mamba_start.main()
    assert called == [True]
    monkeypatch.setitem(sys.modules, "jetson_mamba.startup", None)
    monkeypatch.delattr("jetson_mamba.startup")
    _jetson_mamba_start.main()
    assert called == [True]
