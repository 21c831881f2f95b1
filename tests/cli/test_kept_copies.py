"""Each copy that is kept is told with its module, its place, its use."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import pytest

from jetson_mamba import overrides
from jetson_mamba.errors import CannotRun
from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.report import kept_copies
from jetson_mamba.report.folders import unwritable
from jetson_mamba.report.kept_copies import KeptCopy

MODULE = "jetson_mamba.report.kept_copies"
DIGEST = "0123456789abcdef" * 2
COMBINED = "ops/triton/ssd_combined.py"
# A module that is no target has a copy where what its kernels are written in is not there.
KERNELS = "ops/kernels/one.py"


class Folders:
    """Where the copies lie, and the package that is installed."""

    def __init__(self, folder: Path) -> None:
        self.bundled, self.cached = folder / "overrides" / "copies", folder / "cache" / "copies"
        self.package = folder / "site" / "mamba_ssm"

    def copy(self, folder: Path, name: str, target: str | None = None, text: str = "") -> Path:
        """A file that is named as a copy may be, with the notice of one of ``target``."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if target is not None:
            text += f"# Source: {target}, sha256 {DIGEST}\n# sha256 {DIGEST}\n"
        (folder / name).write_text(text)
        return folder / name

    def module(self, path: str, text: str = "import selective_scan_cuda\n") -> bytes:
        """A module of the package; its text."""
        (self.package / path).parent.mkdir(parents=True, exist_ok=True)
        (self.package / path).write_text(text)
        return text.encode()


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folders:
    """Folders with nothing in them yet."""
    found = Folders(tmp_path)
    found.package.mkdir(parents=True)
    monkeypatch.setenv("JETSON_MAMBA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(overrides, "FOLDER", str(tmp_path / "overrides"))
    monkeypatch.setattr(overrides, "check", lambda: None)
    monkeypatch.setattr(copies, "_own_digest", lambda: b"")
    path = [str(found.package.parent), "/elsewhere"]
    monkeypatch.setattr(f"{MODULE}.installed.search_path", lambda: path)
    return found


def test_the_folders_are_those_that_copies_are_read_from(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kept_copies.bundled_folder() == str(folders.bundled)
    assert kept_copies.cached_folder() == str(folders.cached)

    def check() -> None:
        raise ImportError("half of it is gone")

    monkeypatch.setattr(overrides, "check", check)
    with pytest.raises(ImportError, match="half of it"):
        kept_copies.bundled_folder()


def test_each_copy_is_told_by_its_notice_else_by_its_name(folders: Folders) -> None:
    own, cached = folders.bundled, folders.cached
    of_vim = folders.copy(cached, f"a-{DIGEST}.py", "vim.a", text=f"# Source: x, sha256 {DIGEST}\n")
    by_name = folders.copy(cached, f"ssd_combined-{DIGEST}.py", text="half\n")
    unknown = folders.copy(cached, f"z-{DIGEST}.py", text="  # Source: b, sha256 1\n")
    bundled = folders.copy(own, f"mha-{DIGEST}.py", TARGETS[0])
    for name in ("notes.py", f"a-{DIGEST}.pyc", f"a-{DIGEST[1:]}.py", f".a-{DIGEST}.py.1.ab"):
        folders.copy(cached, name, TARGETS[0])
        folders.copy(own, name, TARGETS[0])
    assert kept_copies.kept() == tuple(
        KeptCopy(target, origin, str(path), path.stat().st_size, False)
        for target, origin, path in (
            (TARGETS[0], "bundled", bundled),
            ("vim.a", "cached", of_vim),
            (TARGETS[1], "cached", by_name),
            ("z", "cached", unknown),
        )
    )


@pytest.mark.parametrize("kind", [None, "triton"])
def test_a_copy_is_in_use_where_an_import_would_take_it(
    kind: str | None, folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacks = () if kind is None else (kind,)
    monkeypatch.setattr(copies, "lacking", lambda source: lacks if b"import " in source else ())
    sources = {path: folders.module(path) for path in (COMBINED, KERNELS, "__init__.py")}
    sources["empty.py"] = folders.module("empty.py", "")
    folders.module("notes.txt")
    (folders.package / "gone.py").symlink_to("not-there")
    for path, source in sources.items():
        inside = path[:-3].replace("/", ".")
        target = "mamba_ssm" if inside == "__init__" else f"mamba_ssm.{inside}"
        target = target if inside != "__init__" else "mamba_ssm.__init__"
        file = str(folders.package / path)
        for without in ((), ("triton",), ("tilelang",)):
            name = copies.file_name(target, source, file, without=without)
            folders.copy(folders.cached, name, target)
    used = [each for each in kept_copies.kept() if each.in_use]
    expected = {"mamba_ssm.ops.triton.ssd_combined"}
    if kind is not None:
        expected |= {"mamba_ssm.ops.kernels.one", "mamba_ssm.__init__"}
    assert {each.target for each in used} == expected and len(used) == len(expected)


def test_of_two_packages_the_one_that_is_imported_counts(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = tmp_path / "second" / "mamba_ssm"
    for package in (folders.package, second):
        (package / "ops" / "triton").mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / COMBINED).write_text(str(package))
        name = copies.file_name(TARGETS[1], str(package).encode(), str(package / COMBINED))
        folders.copy(folders.cached, name, str(package).split("/")[-2])
    path = [str(folders.package.parent), str(second.parent)]
    monkeypatch.setattr(f"{MODULE}.installed.search_path", lambda: path)
    assert {each.target: each.in_use for each in kept_copies.kept()} == {
        "site": True,
        "second": False,
    }


def test_clearing_tells_what_it_removed_and_leaves_the_rest(folders: Folders) -> None:
    copy = folders.copy(folders.cached, f"a-{DIGEST}.py")
    half = folders.copy(folders.cached, f".a-{DIGEST}.py.123.ab")
    others = [folders.copy(folders.cached, name) for name in (".notes", "a.py", f".b-{DIGEST}")]
    compiled = folders.cached / "__pycache__"
    bytecode = folders.copy(compiled, f"a-{DIGEST}.cpython-311.pyc")
    others.append(folders.copy(compiled, "notes.cpython-311.pyc"))
    bundled = folders.copy(folders.bundled, f"a-{DIGEST}.py")
    assert kept_copies.clear() == (str(half), str(copy))
    assert not copy.exists() and not half.exists() and not bytecode.exists()
    assert all(each.exists() for each in (*others, bundled))
    assert kept_copies.clear() == ()


def test_what_cannot_be_removed_is_named(folders: Folders) -> None:
    path = folders.cached / f"a-{DIGEST}.py"
    path.mkdir(parents=True)
    with pytest.raises(CannotRun) as raised:
        kept_copies.clear()
    error = raised.value
    assert str(error).startswith(f"{path}: ") and "can be removed" in str(error)
    assert isinstance(error.__cause__, OSError)


def open_to_others(folder: Path) -> None:
    """Make a folder in which others may write, in one in which they may not."""
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir()
    folder.chmod(0o777)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda cached: None, None),
        (lambda cached: cached.mkdir(mode=0o700, parents=True), None),
        (lambda cached: cached.parent.touch(), "{root} is no folder that this user alone"),
        (lambda cached: open_to_others(cached.parent), "{root} is no folder that this user"),
        (open_to_others, "{cached} is no folder that this user alone"),
    ],
)
def test_why_no_copy_can_be_kept(
    make: Callable[[Path], Any], said: str | None, folders: Folders
) -> None:
    make(folders.cached)
    found = kept_copies.not_writable()
    if said is None:
        assert found is None
    else:
        assert found is not None
        assert found.startswith(said.format(root=folders.cached.parent, cached=folders.cached))


def test_why_a_folder_cannot_be_written_is_said(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(28, "No space left on device")
    monkeypatch.setattr(f"{MODULE}.unwritable", lambda folder: error)
    assert kept_copies.not_writable() == f"{folders.cached}: No space left on device"


@pytest.mark.parametrize("there", [True, False])
def test_nothing_stays_of_the_trial_of_a_folder(there: bool, tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    if there:
        folder.mkdir(parents=True)
    assert unwritable(str(folder)) is None
    assert os.listdir(tmp_path) == ["a"] * there and (not there or not os.listdir(folder))


def test_what_is_in_the_place_of_a_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in ("file", "file/below", "file/below/further"):
        assert isinstance(unwritable(str(tmp_path / folder)), OSError)
    assert os.listdir(tmp_path) == ["file"]
