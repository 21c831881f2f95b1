"""The cache is in a folder that only its user writes to.

A write that does not end leaves nothing there.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from jetson_mamba import cache


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a folder for temporary files, apart; nothing says where a cache is."""
    for name in ("JETSON_MAMBA_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    for name in ("home", "temporary", "work"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, "home/.cache/jetson_mamba"),
        ({"XDG_CACHE_HOME": ""}, "home/.cache/jetson_mamba"),
        ({"XDG_CACHE_HOME": "{0}/own"}, "own/jetson_mamba"),
        ({"XDG_CACHE_HOME": "relative"}, "work/relative/jetson_mamba"),
        ({"JETSON_MAMBA_CACHE": "{0}/said"}, "said"),
        ({"JETSON_MAMBA_CACHE": "here"}, "work/here"),
        ({"JETSON_MAMBA_CACHE": "{0}/said", "XDG_CACHE_HOME": "{0}/own"}, "said"),
        ({"JETSON_MAMBA_CACHE": "", "XDG_CACHE_HOME": "{0}/own"}, "own/jetson_mamba"),
    ],
)
def test_it_is_where_the_user_says_and_else_among_the_users_own(
    variables: dict[str, str], expected: str, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(folders))
    assert cache.root() == str(folders / expected)
    directory = cache.private_directory("copies")
    assert directory == str(folders / expected / "copies")
    for path in (directory, cache.root()):
        assert os.stat(path).st_mode & 0o777 == 0o700


def test_a_user_without_a_home_has_one_among_the_temporary_files(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where there is none
    assert cache.root() == str(folders / "temporary" / f"jetson_mamba-{os.getuid()}")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("call", ["replace", "write"])
def test_a_write_that_is_interrupted_leaves_nothing(
    call: str, error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> bytes:
        raise error

    owner, name = (os, "replace") if call == "replace" else (cache, "seal")
    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(error):
        cache.write(str(tmp_path), "name", b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_is_none_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError

    assert cache.write(str(tmp_path / "absent"), "name", b"data") is None
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refused)
        assert cache.write(str(tmp_path), "name", b"data") is None
    assert list(tmp_path.iterdir()) == []
    path = cache.write(str(tmp_path), "name", b"data")
    assert path == str(tmp_path / "name")
    assert cache.read(str(tmp_path), "name") == b"data"
    assert os.stat(path).st_mode & 0o777 == 0o600


@pytest.mark.parametrize("damage", [b"", b"#", b"\n", b" "])
def test_what_was_written_under_a_name_is_that_and_no_other(damage: bytes) -> None:
    sealed = cache.seal("name", b"data\n")
    assert cache.unseal("name", sealed) == b"data\n"
    assert cache.unseal("name", sealed.replace(b"data\n", b"data\n" + damage)) == (
        None if damage else b"data\n"
    )
    assert cache.unseal("name", sealed + damage) == (None if damage else b"data\n")
    assert cache.unseal("other", sealed) is None
    assert cache.unseal("name", b"") is None


@pytest.mark.parametrize("mode", [0o700, 0o755, 0o720, 0o702, 0o777])
@pytest.mark.parametrize("level", ["said", "said/copies"])
def test_a_folder_in_which_others_may_write_is_none(
    level: str, mode: int, folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JETSON_MAMBA_CACHE", str(folders / "said"))
    directory = cache.private_directory("copies")
    (folders / level).chmod(mode)
    assert cache.private_directory("copies") == (None if mode & 0o022 else directory)


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o620, 0o602, 0o666])
def test_a_file_that_others_may_write_is_none(mode: int, tmp_path: Path) -> None:
    path = cache.write(str(tmp_path), "name", b"data")
    assert path is not None
    os.chmod(path, mode)
    assert cache.read(str(tmp_path), "name") == (None if mode & 0o022 else b"data")


def test_a_file_is_no_folder(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JETSON_MAMBA_CACHE", str(folders / "said"))
    assert cache.private_directory() is not None
    (folders / "said" / "copies").touch(mode=0o600)
    assert cache.private_directory("copies") is None


def test_a_file_is_written_beside_where_it_will_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A move from another file system would be none."""
    moved: list[tuple[str, str]] = []
    replace = os.replace

    def noted(one: str, other: str) -> None:
        moved.append((one, other))
        replace(one, other)

    monkeypatch.setattr(os, "replace", noted)
    path = str(tmp_path / "name.py")
    assert cache.write(str(tmp_path), "name.py", b"x\n") == path
    ((one, other),) = moved
    assert other == path and os.path.dirname(one) == str(tmp_path)
    assert os.path.basename(one).startswith(f".name.py.{os.getpid()}.")
    assert os.listdir(tmp_path) == ["name.py"]
