"""Which packages Python finds, with what pip has on record for each."""

from __future__ import annotations

from dataclasses import replace
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.report import installed, packages
from tests.doctor.facts import MAMBA


def site(folder: Path, name: str, own: str | None = None, recorded: str | None = None) -> str:
    """A folder of packages with this one, its own version and that of its record, if any."""
    folder.mkdir(exist_ok=True)
    if own is not None:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f'__version__ = "{own}"\n' if own else "")
    if recorded is not None:
        distribution = name.replace("_", "-")
        info = folder / f"{name}-{recorded}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {recorded}\n"
        )
        (info / "WHEEL").write_text("Wheel-Version: 1.0\nTag: py3-none-linux_aarch64\n")
        (info / "RECORD").write_text(f"{name}/__init__.py,,\n")
    return str(folder)


@pytest.mark.parametrize(
    ("own", "recorded", "version", "platforms"),
    [
        ("1.5", "1.6", "1.6", True),
        ("1.5", None, "1.5", False),
        ("", None, None, False),
        # On record, and its files are gone.
        (None, "1.6", "1.6", True),
        (None, None, None, False),
    ],
)
@pytest.mark.parametrize("name", ["causal_conv1d", "huggingface_hub", "einops_of_nobody"])
def test_a_version_is_that_of_the_record_else_its_own(
    name: str,
    own: str | None,
    recorded: str | None,
    version: str | None,
    platforms: bool,
    tmp_path: Path,
) -> None:
    folder = site(tmp_path / "site", name, own, recorded)
    found = packages.package(name, [folder])
    assert (found.name, found.version) == (name, version)
    assert found.path == (None if own is None else str(tmp_path / "site" / name))
    assert bool(found.platforms) is platforms


def test_a_record_elsewhere_is_not_of_the_folder_that_wins(tmp_path: Path) -> None:
    first = site(tmp_path / "first", "causal_conv1d", "1.5")
    second = site(tmp_path / "second", "causal_conv1d", "1.6", "1.6")
    found = packages.package("causal_conv1d", [first, second])
    assert (found.version, found.platforms) == ("1.5", ())
    found = packages.package("causal_conv1d", [second, first])
    assert found.version == "1.6" and found.platforms


def test_every_mamba_ssm_is_told_with_its_own_record(tmp_path: Path) -> None:
    first = site(tmp_path / "first", "mamba_ssm", "2.2.2")
    second = site(tmp_path / "second", "mamba_ssm", "", "2.3.1")
    found = packages.mamba_ssm([first, second])
    assert [(each.version, each.distribution, each.wins) for each in found] == [
        ("2.2.2", None, True),
        ("2.3.1", "2.3.1", False),
    ]
    assert found[0].platforms == () and found[1].platforms
    assert [Path(each.path).parent for each in found] == [tmp_path / "first", tmp_path / "second"]


@pytest.mark.parametrize("takes", [True, False])
def test_a_finder_of_a_program_is_asked_as_python_asks_it(
    takes: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a top-level module without a path, which is the path finder's alone."""
    folder = site(tmp_path / "site", "some_package_of_nobody", "1")
    asked: list[tuple[Any, ...]] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            asked.append((name, path))
            return "a spec" if takes else None

    monkeypatch.setattr("sys.meta_path", [Finder, PathFinder])
    found: Any = installed.find("some_package_of_nobody", [folder])
    assert asked == [("some_package_of_nobody", None)]
    assert (found == "a spec") is takes
    if not takes:
        assert found.submodule_search_locations == [str(tmp_path / "site/some_package_of_nobody")]
        assert installed.find("another_of_nobody", [folder]) is None
        assert installed.find("some_package_of_nobody", []) is None


@pytest.mark.parametrize(
    ("required", "needs"),
    [
        ({"einops": "a.py"}, True),
        ({"torch": "a.py", "einops.layers.torch": "a.py"}, True),
        ({"einops_of_nobody": "a.py", "layers.einops": "a.py"}, False),
        ({}, False),
    ],
)
def test_a_package_is_needed_where_a_module_in_it_is(required: dict[str, str], needs: bool) -> None:
    asking = replace(MAMBA, asks=replace(MAMBA.asks, required=required))
    assert packages.requires(asking, "einops") is needs


def test_the_path_is_that_of_a_program_in_this_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the folder of the command nor this one twice."""
    scripts, link, other = tmp_path / "scripts", tmp_path / "link", str(tmp_path / "other")
    scripts.mkdir()
    link.symlink_to(scripts)
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(link) if name == "scripts" else "")
    monkeypatch.setattr("os.getcwd", lambda: str(tmp_path))
    given = [str(scripts), "", other, str(tmp_path), str(link), "/zip/archive.zip"]
    monkeypatch.setattr("sys.path", given)
    assert installed.search_path() == [str(tmp_path), other, "/zip/archive.zip"]


def test_each_folder_of_a_package_is_told_once_in_the_order_of_the_path(tmp_path: Path) -> None:
    first, second = (site(tmp_path / each, "mamba_ssm", "1") for each in ("first", "second"))
    (tmp_path / "link").symlink_to(first)
    link, empty = str(tmp_path / "link"), str(tmp_path)
    found = installed.folders("mamba_ssm", [empty, second, first, link, second])
    assert found == [f"{second}/mamba_ssm", f"{first}/mamba_ssm"]
    assert installed.folders("mamba_ssm", [empty]) == []
    (tmp_path / "mamba_ssm.py").touch()
    assert installed.folders("mamba_ssm", [empty]) == []
    assert installed.folders("mamba_ssm", [empty, first]) == [f"{first}/mamba_ssm"]


def test_a_module_that_is_not_there_has_its_place_all_the_same() -> None:
    assert installed.module_file("/a/mamba_ssm", "mamba_ssm.ops.x") == "/a/mamba_ssm/ops/x.py"
