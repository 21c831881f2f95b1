"""The names of extensions that a target's own text binds where its modified copy does not.

Whoever takes them from the module, as ``from ... import causal_conv1d_fn``, gets what an import of
the extension gives: what is installed, or the stand-in. Nothing is read before a name is asked for.
"""

from __future__ import annotations

import ast
from functools import partial
from importlib import import_module
from types import ModuleType
from typing import Any

from jetson_mamba.finder import EXTENSIONS


def keep(module: ModuleType, source: str) -> None:
    """Let ``module`` have them, of the text in the file ``source``, unless it answers itself."""
    vars(module).setdefault("__getattr__", partial(_look_up, module.__name__, source))


def _look_up(module: str, source: str, name: str) -> Any:
    """The module's ``__getattr__``; AttributeError for a name that no import of one binds."""
    if not name.startswith("__"):
        for statement in ast.walk(_tree(source)):
            if not isinstance(statement, (ast.Import, ast.ImportFrom)):
                continue
            for alias in statement.names:
                origin = alias.name
                if isinstance(statement, ast.ImportFrom):
                    origin = "" if statement.level else statement.module or ""
                if origin.split(".")[0] not in EXTENSIONS or (alias.asname or alias.name) != name:
                    continue
                found = import_module(origin)
                return found if isinstance(statement, ast.Import) else getattr(found, alias.name)
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


def _tree(source: str) -> ast.Module:
    try:
        with open(source, "rb") as file:
            return ast.parse(file.read())
    except (OSError, SyntaxError, ValueError):
        return ast.Module([], [])
