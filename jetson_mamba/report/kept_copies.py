"""The modified copies that are kept: those bundled with the package, those in the user's cache."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass

from jetson_mamba import cache, copies
from jetson_mamba.errors import CannotRun
from jetson_mamba.finder import TARGETS
from jetson_mamba.report import installed

NAME = re.compile(r"(\w+)-[0-9a-f]{32}\.py")


@dataclass(frozen=True)
class KeptCopy:
    """A copy on disk. ``in_use`` says that it serves the mamba_ssm that is installed here."""

    target: str
    origin: str
    path: str
    size: int
    in_use: bool


def bundled_folder() -> str:
    """Where the copies lie that come with the package."""
    import vendored_overrides  # here, so that doctor runs where only this package is left

    return os.path.join(os.path.dirname(os.path.abspath(vendored_overrides.__file__)), "copies")


def cached_folder() -> str:
    """Where the copies lie that were made here; it need not be there."""
    return os.path.join(cache.root(), "copies")


def kept() -> tuple[KeptCopy, ...]:
    """Every copy that is kept, in the order in which they are looked for."""
    names = _names_in_use()
    found = []
    for origin, folder in (("bundled", bundled_folder()), ("cached", cached_folder())):
        for path in _copies_in(folder):
            name = os.path.basename(path)
            size = os.lstat(path).st_size
            target = next(each for each in TARGETS if _stem(each) == name.partition("-")[0])
            found.append(KeptCopy(target, origin, path, size, name in names))
    return tuple(found)


def clear() -> tuple[str, ...]:
    """Remove every cached copy, and what interrupted writing left; returns the files."""
    removed = []
    for path in _copies_in(cached_folder(), with_remains=True):
        try:
            os.unlink(path)
        except OSError as error:
            raise CannotRun(
                f"{path}: {error.strerror}; expected a file that can be removed"
            ) from error
        removed.append(path)
    with contextlib.suppress(OSError):
        for name in os.listdir(os.path.join(cached_folder(), "__pycache__")):
            if NAME.match(name.partition(".")[0] + ".py"):
                os.unlink(os.path.join(cached_folder(), "__pycache__", name))
    return tuple(removed)


def _copies_in(folder: str, with_remains: bool = False) -> list[str]:
    """The files of a folder that are named as copies are; nothing else is touched or told."""
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    stems = {_stem(target) for target in TARGETS}
    found = []
    for name in names:
        match = NAME.match(name[1:]) if with_remains and name.startswith(".") else None
        match = match or NAME.fullmatch(name)
        if match and match[1] in stems:
            found.append(os.path.join(folder, name))
    return found


def _stem(target: str) -> str:
    return target.rpartition(".")[2]


def _names_in_use() -> set[str]:
    names = set()
    for folder in installed.folders("mamba_ssm", installed.search_path())[:1]:
        for target in TARGETS:
            path = installed.module_file(folder, target)
            with contextlib.suppress(OSError), open(path, "rb") as file:
                names.add(copies.file_name(target, file.read(), path))
    return names
