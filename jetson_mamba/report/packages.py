"""The Python packages around Mamba: which are installed, which wins, which belongs to whom."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Sequence

from jetson_mamba.report import installed
from jetson_mamba.report.sources import Asks, asks


@dataclass(frozen=True)
class Package:
    """An installed package, or what is missing of it: ``path`` is None where Python has none."""

    name: str
    version: str | None
    path: str | None
    platforms: tuple[str, ...]


@dataclass(frozen=True)
class MambaSsm:
    """One mamba_ssm on the path.

    ``wins`` says that it is the one that is imported. ``distribution`` is the version that
    pip has on record for its folder, None for a folder that pip knows nothing of.
    ``fork_parameters`` are those that state-spaces' blocks do not have.
    """

    path: str
    version: str | None
    wins: bool
    distribution: str | None
    platforms: tuple[str, ...]
    fork_parameters: tuple[str, ...]
    asks: Asks


def mamba_ssm(path: Sequence[str]) -> tuple[MambaSsm, ...]:
    """Every mamba_ssm on ``path``, the one that wins first."""
    known = installed.distributions("mamba-ssm", path)
    found: list[MambaSsm] = []
    for folder in installed.folders("mamba_ssm", path):
        parent = os.path.realpath(os.path.dirname(folder))
        own = next((each for each in known if each.folder == parent), None)
        asked = asks(folder)
        found.append(
            MambaSsm(
                path=folder,
                version=_own_version(folder) or (own.version if own else None),
                wins=not found,
                distribution=own.version if own else None,
                platforms=own.tags if own else (),
                fork_parameters=asked.own_parameters,
                asks=asked,
            )
        )
    return tuple(found)


def package(name: str, path: Sequence[str]) -> Package:
    """What is installed under the name of a module."""
    folder = next(iter(installed.folders(name, path)), None)
    known = installed.distributions(name, path)
    parent = os.path.realpath(os.path.dirname(folder)) if folder else None
    own = next((each for each in known if each.folder == parent), None)
    if own is None and known and folder is None:
        own = known[0]  # on record, and its files are gone
    return Package(
        name,
        own.version if own else folder and _own_version(folder),
        folder,
        own.tags if own else (),
    )


def _own_version(folder: str) -> str | None:
    """The version that a package states in its ``__init__.py``."""
    try:
        with open(os.path.join(folder, "__init__.py"), encoding="utf-8", errors="replace") as file:
            match = re.search(r"^__version__\s*=\s*[\"']([^\"']+)", file.read(), re.MULTILINE)
    except OSError:
        return None
    return match[1] if match else None


def requires(mamba: MambaSsm, name: str) -> bool:
    """Whether a mamba_ssm cannot be imported without a package."""
    return any(module.split(".")[0] == name for module in mamba.asks.required)
