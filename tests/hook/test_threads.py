"""Threads that import at once, each with the lock of a module that the other may need."""

from __future__ import annotations

import ast
from typing import Iterator

from tests.hook.sandbox import REPOSITORY

PACKAGE = "jetson_mamba.ops"


def parts(tree: ast.AST) -> Iterator[str]:
    """The parts of the ops that a text imports by their own names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(f"{PACKAGE}."))


def test_what_runs_at_an_import_asks_for_the_ops_as_a_whole() -> None:
    """Python locks a part before the package that it is in.

    A thread that imports a part would hold what another that imports the package waits for, and
    each import raises that there is a deadlock.
    """
    files = [*(REPOSITORY / "jetson_mamba" / "hook").rglob("*.py")]
    assert files
    found = {file.name: [*parts(ast.parse(file.read_text(encoding="utf-8")))] for file in files}
    assert {file: names for file, names in found.items() if names} == {}
