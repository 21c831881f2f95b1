"""Where a package came from, by what installers have written down."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jetson_mamba import advice
from jetson_mamba.releases import instead, needed, together

ADDRESS = "https://a.org/x"


class Distribution:
    """The metadata of a distribution, as ``importlib.metadata`` has it."""

    def __init__(self, version: str = "1.0", **texts: str) -> None:
        self.version = version
        self.texts = {name.replace("_json", ".json"): text for name, text in texts.items()}
        self.files: Any = None
        self.folder = ""

    def read_text(self, name: str) -> str | None:
        """A file of the metadata."""
        return self.texts.get(name)

    def locate_file(self, path: str) -> str:
        """Where it is installed."""
        assert path == ""
        return self.folder


def told(monkeypatch: pytest.MonkeyPatch, direct_url: Any, there: bool = True) -> None:
    """Let this package be one of which that is recorded."""
    text = {} if direct_url is None else {"direct_url_json": json.dumps(direct_url)}
    found = Distribution("0.3", **text) if there else None
    monkeypatch.setattr(advice, "installed", lambda name: found if name == "jetson-mamba" else None)


@pytest.mark.parametrize(
    ("direct_url", "kind", "place"),
    [
        (None, "index", None),
        ({}, "index", None),
        ([], "index", None),
        ({"url": ADDRESS, "archive_info": {}}, "wheel", ADDRESS),
        ({"url": ADDRESS, "dir_info": {}}, "checkout", ADDRESS),
        ({"url": ADDRESS, "dir_info": {"editable": False}}, "checkout", ADDRESS),
        ({"url": ADDRESS, "vcs_info": {"vcs": "hg"}}, "repository", f"hg+{ADDRESS}"),
        ({"url": ADDRESS, "vcs_info": {"commit_id": "a1"}}, "repository", f"git+{ADDRESS}@a1"),
        ({"url": "file:///no/such%20place", "archive_info": {}}, "wheel", None),
        ({"url": "file:///", "dir_info": {}}, "checkout", "/"),
    ],
)
@pytest.mark.parametrize("on_an_index", [True, False])
def test_where_it_came_from_is_what_is_given_to_an_installer(
    direct_url: Any,
    kind: str,
    place: str | None,
    on_an_index: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told(monkeypatch, direct_url)
    monkeypatch.setattr(advice, "ON_AN_INDEX", on_an_index)
    monkeypatch.setattr(advice, "pip", lambda: "pip")
    if kind == "index" and on_an_index:
        place = "jetson-mamba==0.3"
    assert advice.origin() == (kind, place)
    command = place and f"pip install --force-reinstall --no-deps {place}"
    assert advice.again() == command
    put_back = f"put the files that are missing in {advice.HERE} back, from where they came"
    assert advice.repair() == (command or put_back)


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize("git", [True, False])
def test_a_folder_that_somebody_works_in_is_a_checkout(
    there: bool, project: bool, git: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told(monkeypatch, {"url": ADDRESS, "dir_info": {"editable": True}}, there)
    here = tmp_path / "a folder"
    here.mkdir()
    monkeypatch.setattr(advice, "HERE", str(here))
    if project:
        (here / "pyproject.toml").touch()
    if git:
        (here / ".git").mkdir()
    assert advice.origin() == ("checkout", str(here) if project else None)
    command = f"git -C '{here}' checkout -- jetson_mamba vendored_overrides"
    assert advice.again() == (command if git else None)


@pytest.mark.parametrize(
    ("said", "is_managed"),
    [
        *[(None, True), ("0", True), ("", True), ("no", True)],
        *[("1", False), ("true", False), ("YES", False), ("on", False)],
    ],
)
@pytest.mark.parametrize("where", ["the system's", "an environment", "one without the file"])
def test_a_system_is_managed_where_its_file_says_so_and_nobody_overrides_it(
    said: str | None,
    is_managed: bool,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("PIP_BREAK_SYSTEM_PACKAGES", raising=False)
    if said is not None:
        monkeypatch.setenv("PIP_BREAK_SYSTEM_PACKAGES", said)
    monkeypatch.setattr(sys, "base_prefix", "/usr")
    monkeypatch.setattr(sys, "prefix", "/venv" if where == "an environment" else "/usr")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / name))
    (tmp_path / "stdlib").mkdir()
    file = tmp_path / "stdlib" / "EXTERNALLY-MANAGED"
    if where != "one without the file":
        file.touch()
    expected = is_managed and where == "the system's"
    assert advice.managed() == (str(file) if expected else None)


@pytest.mark.parametrize(
    ("prefix", "debian", "is_debians"),
    [("/usr", True, True), ("/usr", False, False), ("/opt", True, False)],
)
def test_the_python_of_debian_is_the_one_in_usr(
    prefix: str, debian: bool, is_debians: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", prefix)
    exists = os.path.exists
    files = {"/etc/debian_version": debian}
    monkeypatch.setattr(os.path, "exists", lambda path: files.get(path) or exists("/no"))
    assert advice._is_debians() is is_debians
    for has in (True, False):
        monkeypatch.setattr(advice, "has_ensurepip", lambda has=has: has)
        assert advice.brings_pip() is (has and not is_debians)
    for named, words in (("/a b/python", "'/a b/python'"), ("", "python"), (None, "python")):
        monkeypatch.setattr(sys, "executable", named)
        assert advice._python() == words


PATH = "mamba_ssm/ops/x.py"


class File(type(Path())):  # type: ignore[misc]
    """A recorded file with its digest."""

    hash: Any = None


def recorded(folder: Path, text: bytes | None, mode: str = "sha256") -> list[Any]:
    file = File(PATH)
    if text is not None:
        digest = base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()
        file.hash = SimpleNamespace(mode=mode, value=digest)
    return [File("other.py"), file]


@pytest.mark.parametrize(
    ("version", "of", "mode", "direct_url", "python", "release"),
    [
        (together.NEWEST, b"same", "sha256", None, (3, 10), None),
        (together.NEWEST, b"other", "sha256", None, (3, 10), together.NEWEST),
        (together.NEWEST, b"other", "sha256", None, (3, 9), "2.3.1"),
        (together.NEWEST, b"other", "md5", None, (3, 10), None),
        (together.NEWEST, None, "", None, (3, 10), None),
        ("2.2.4", b"same", "sha256", None, (3, 10), None),
        ("2.2.4", b"other", "sha256", None, (3, 10), "2.2.4"),
        ("2.2.4", b"same", "sha256", "{}", (3, 10), together.NEWEST),
        ("9.0", b"same", "sha256", None, (3, 10), together.NEWEST),
        ("9.0", b"same", "sha256", None, (3, 8), "2.2.2"),
    ],
)
def test_a_refused_text_is_replaced_where_that_gives_another(
    version: str,
    of: bytes | None,
    mode: str,
    direct_url: str | None,
    python: tuple[int, int],
    release: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Distribution(version, **({} if direct_url is None else {"direct_url_json": direct_url}))
    found.files, found.folder = recorded(tmp_path, of, mode), str(tmp_path)
    path = tmp_path / PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(b"same")
    there: dict[str, Any] = {"mamba-ssm": found}
    monkeypatch.setattr(advice, "installed", there.get)
    monkeypatch.setattr(sys, "version_info", (*python, 0, "final", 0))
    assert instead.replacement(str(path)) == release
    report = (
        f"report {path} to the authors of jetson_mamba, or set JETSON_MAMBA=off to silence this"
    )
    install = "install a release that is known (jetson-mamba install mamba-ssm=={}), "
    assert instead.for_a_text(str(path)) == (install.format(release) if release else "") + report
    # One that goes with the Triton that is there.
    if release == together.NEWEST and version != release:
        there["triton"] = Distribution("3.3.1")
        assert instead.replacement(str(path)) == "2.3.1"
    for nothing in (str(tmp_path / "unknown.py"), None, 3):
        assert instead.replacement(nothing) is None
        words = nothing if isinstance(nothing, str) else "its text"
        assert instead.for_a_text(nothing) == report.replace(str(path), words)
    found.files = None
    assert instead.replacement(str(path)) is None
    there.clear()
    assert instead.replacement(str(path)) is None


@pytest.mark.parametrize(
    ("version", "architecture", "is_old"),
    [
        ("20.2.4", "aarch64", True),
        ("20.3", "aarch64", False),
        ("21.0", "aarch64", False),
        ("9.0.1", "aarch64", True),
        ("20.2.4", "x86_64", False),
        (None, "aarch64", False),
    ],
)
def test_an_old_pip_is_one_that_knows_no_newer_wheels(
    version: str | None, architecture: str, is_old: bool
) -> None:
    assert needed.old_pip(version, architecture) is is_old
