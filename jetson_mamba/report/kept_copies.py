"""The modified copies that are kept: those bundled with the package, those in the user's cache."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from typing import Iterator

from jetson_mamba import cache, overrides
from jetson_mamba.errors import CannotRun
from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.report import installed
from jetson_mamba.report.folders import unwritable

NAME = re.compile(r"(\w+)-[0-9a-f]{32}\.py")
SOURCE = re.compile(rb"^# Source: ([\w.]+), sha256 ", re.MULTILINE)


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
    overrides.check()
    return os.path.join(overrides.FOLDER, "copies")


def cached_folder() -> str:
    """Where the copies lie that were made here; it need not be there."""
    return os.path.join(cache.root(), "copies")


def not_writable() -> str | None:
    """Why no copy can be kept in that folder; None where one can be."""
    for level in (cache.root(), cached_folder()):
        if os.path.lexists(level) and not cache.is_private(level):
            return f"{level} is no folder that this user alone can write in"
    error = unwritable(cached_folder())
    return f"{cached_folder()}: {error.strerror}" if error else None


def kept() -> tuple[KeptCopy, ...]:
    """Every copy that is kept, in the order in which they are looked for."""
    names = _names_in_use()
    found = []
    for origin, folder in (("bundled", bundled_folder()), ("cached", cached_folder())):
        for path in _copies_in(folder):
            name = os.path.basename(path)
            size = os.lstat(path).st_size
            found.append(KeptCopy(_target_of(path), origin, path, size, name in names))
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
    found = []
    for name in names:
        match = NAME.match(name[1:]) if with_remains and name.startswith(".") else None
        match = match or NAME.fullmatch(name)
        if match:
            found.append(os.path.join(folder, name))
    return found


def _target_of(path: str) -> str:
    """The module that a copy is of, as its notice says; without one, how its name ends."""
    stem = os.path.basename(path).partition("-")[0]
    with contextlib.suppress(OSError), open(path, "rb") as file:
        found = SOURCE.findall(file.read())
        if found:
            return str(found[-1].decode())
    return next((each for each in TARGETS if each.endswith(f".{stem}")), stem)


def _names_in_use() -> set[str]:
    names = set()
    for folder in installed.folders("mamba_ssm", installed.search_path())[:1]:
        for target, path in _modules(folder):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                source = file.read()
                lacks = copies.lacking(source)
                if lacks or target in TARGETS:
                    names.add(copies.file_name(target, source, path, without=lacks))
    return names


def _modules(package: str) -> Iterator[tuple[str, str]]:
    """The modules of mamba_ssm in a folder, and their files."""
    for folder, _, files in os.walk(package):
        inside = os.path.relpath(folder, package).replace(os.sep, ".").strip(".")
        for name in files:
            if name.endswith(".py"):
                parts = ("mamba_ssm", inside, name[:-3])
                yield ".".join(each for each in parts if each), os.path.join(folder, name)
