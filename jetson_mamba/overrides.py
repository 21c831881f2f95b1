"""The overrides, which lie in the folder ``vendored_overrides`` beside this package.

They are imported as modules of this one, from that folder and no other: a user's own
``vendored_overrides`` is neither run in their place nor hidden by them. The folder may lie in a
zip archive, as this package may.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from importlib.machinery import PathFinder
from typing import Any

NAME = "vendored_overrides"
FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), NAME)
# What makes this module a package whose modules lie there.
__path__ = [FOLDER]


def declared(target: str) -> Any:
    """What changes in ``target``: the ``OVERRIDE`` of the module at the target's own path."""
    return _module(target).OVERRIDE


def edits_without(kind: str) -> Any:
    """What changes besides in a module that imports "triton", "tilelang" or "cute", without it."""
    return _module(f"without_{kind}").EDITS


def _module(path: str) -> Any:
    check()
    try:
        return import_module(f"{__name__}.{path}")
    except ModuleNotFoundError as error:
        name = (error.name or "").replace(__name__, NAME, 1)
        raise ModuleNotFoundError(f"No module named {name!r}", name=name) from error


def check() -> None:
    """Raise ModuleNotFoundError where the folder is gone."""
    if PathFinder.find_spec(NAME, [os.path.dirname(FOLDER)]) is None:
        raise ModuleNotFoundError(f"No module named {NAME!r}", name=NAME)


def folder() -> Any:
    """The folder as ``importlib.resources`` gives it, to read its files from."""
    if sys.version_info >= (3, 9):
        from importlib.resources import files

        package: Any = files("jetson_mamba")
        return package.parent / NAME
    # There it is importlib_resources, which a user's module may be called as well.
    archive = getattr(globals()["__loader__"], "archive", None)
    if archive is None:
        from pathlib import Path

        return Path(FOLDER)
    import zipfile

    return zipfile.Path(archive, os.path.relpath(FOLDER, archive) + "/")
