"""Finds what is installed without importing any of it.

Importing mamba_ssm takes seconds and may be what fails, so a report looks for modules as the
import system would and goes no further.
"""

from __future__ import annotations

import operator
import os
import platform
import re
import sys
import sysconfig
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any, Callable, NamedTuple, Sequence

from jetson_mamba.finder import is_a


class Distribution(NamedTuple):
    """A distribution's metadata: its version, the platforms it was built for, where it lies."""

    name: str
    version: str
    tags: tuple[str, ...]
    folder: str
    requires: tuple[str, ...]


def search_path() -> list[str]:
    """``sys.path`` as a program in the current folder has it.

    In the process of a command the first entry is the folder of that command, which no other
    program has.
    """
    scripts = os.path.realpath(sysconfig.get_path("scripts"))
    current = os.getcwd()
    rest = [
        entry
        for entry in sys.path
        if entry not in ("", current) and os.path.realpath(entry) != scripts
    ]
    return [current, *rest]


def find(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """The spec of a top-level module that wins on ``path``, other import hooks included.

    The finder of this package is left out: it may put a stand-in in a module's place.
    """
    for finder in sys.meta_path:
        if is_a(finder, "Finder"):
            continue
        spec = finder.find_spec(name, path if finder is PathFinder else None)
        if spec is not None:
            return spec
    return None


def folders(name: str, path: Sequence[str]) -> list[str]:
    """Every folder that holds a package of that name, the one that wins first."""
    first = find(name, path)
    specs = [first, *(PathFinder.find_spec(name, [entry]) for entry in path)] if first else []
    found: dict[str, str] = {}
    for spec in specs:
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            found.setdefault(os.path.realpath(folder), os.path.abspath(folder))
    return list(found.values())


def module_file(package: str, name: str) -> str:
    """Where a module of a package lies whose folder is ``package``, whether or not it is there."""
    return os.path.join(package, *name.split(".")[1:]) + ".py"


def distributions(name: str, path: Sequence[str]) -> list[Distribution]:
    """The metadata of a distribution, once for each place in which it is installed."""
    found = {}
    for each in metadata.distributions(name=name, path=list(path)):
        tags = (each.read_text("WHEEL") or "").splitlines()
        folder = os.path.realpath(str(each.locate_file("")))
        try:
            version = each.version or "unknown"
        except KeyError:  # a leftover of a distribution that is half gone
            version = "unknown"
        found[folder, version] = Distribution(
            name,
            version,
            tuple(line.partition(":")[2].strip() for line in tags if line.startswith("Tag:")),
            folder,
            tuple(each.requires or ()),
        )
    return list(found.values())


def triton_requirement(torches: Sequence[Distribution]) -> str | None:
    """The version of Triton that an installed torch asks for on this machine, if it does.

    From 2.14 on that is the first of several, as in ``triton~=3.9.0``.
    """
    for torch in torches:
        for requirement in torch.requires:
            text, _, marker = requirement.partition(";")
            match = re.fullmatch(r"triton\s*\(?\s*[=~]=\s*([\w.+]+)\s*\)?", text.strip())
            if match and _holds(marker):
                return match[1]
    return None


def _holds(marker: str) -> bool:
    """Whether a marker holds here, as far as it is a row of comparisons; else it does not."""
    here = {
        "platform_system": platform.system(),
        "sys_platform": sys.platform,
        "platform_machine": platform.machine(),
        "python_version": ".".join(platform.python_version_tuple()[:2]),
    }
    compare: dict[str, Callable[[Any, Any], bool]] = {
        "==": operator.eq,
        "!=": operator.ne,
        "<": operator.lt,
        "<=": operator.le,
        ">": operator.gt,
        ">=": operator.ge,
    }
    for part in filter(str.strip, marker.split(" and ")):
        match = re.fullmatch(r"\s*(\w+)\s*([=!<>]+)\s*[\"']([^\"']*)[\"']\s*", part)
        if match is None or match[1] not in here or match[2] not in compare:
            return False
        found, wanted = here[match[1]], match[3]
        numbers = match[1] == "python_version"
        pair = [tuple(map(int, each.split("."))) if numbers else each for each in (found, wanted)]
        if not compare[match[2]](*pair):
            return False
    return True
