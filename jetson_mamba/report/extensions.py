"""The compiled extensions: which files there are, what they were built for, what loads."""

from __future__ import annotations

import glob
import os
import platform
import sysconfig
from dataclasses import dataclass
from importlib.machinery import EXTENSION_SUFFIXES
from typing import Any, Sequence

from jetson_mamba.report import installed
from jetson_mamba.report.machine import elf_machine

NAMES = ("selective_scan_cuda", "causal_conv1d_cuda")


@dataclass(frozen=True)
class Extension:
    """A compiled extension.

    ``path`` is the file that Python finds, None where it finds none; ``misfits`` are files of
    that name that this machine or this Python cannot use, each with the reason. ``error`` is
    what importing it, after torch and in a process of its own, came to: None if it loads, or if
    there is nothing to load. ``parameters`` counts those of its functions, where they tell.
    """

    name: str
    path: str | None
    misfits: tuple[str, ...]
    loads: bool
    error: str | None
    parameters: dict[str, int]


def path_of(name: str, path: Sequence[str]) -> str | None:
    """The file that ``import name`` would load."""
    spec = installed.find(name, path)
    return spec.origin if spec else None


def extension(name: str, path: Sequence[str], tried: dict[str, Any] | None) -> Extension:
    """An extension, with what trying to import it gave (see ``probe``), if it was tried."""
    result = tried or {}
    origin = path_of(name, path)
    return Extension(
        name=name,
        path=origin,
        misfits=_misfits(name, path),
        loads=bool(tried) and "error" not in result,
        error=result.get("error"),
        parameters=result.get("parameters", {}),
    )


def _misfits(name: str, path: Sequence[str]) -> tuple[str, ...]:
    """Files that were built for another architecture or another Python."""
    found = []
    for entry in path:
        for file in sorted(glob.glob(os.path.join(glob.escape(entry), name + ".*"))):
            if not file.endswith((".so", ".pyd")):
                continue
            built_for = elf_machine(file)
            suffix = os.path.basename(file)[len(name) :]
            if built_for not in (None, platform.machine()):
                found.append(f"{file}: built for {built_for}, this is {platform.machine()}")
            elif suffix not in EXTENSION_SUFFIXES:
                abi = sysconfig.get_config_var("SOABI")
                found.append(f"{file}: built for another Python, this one's files carry {abi}")
    return tuple(dict.fromkeys(found))
