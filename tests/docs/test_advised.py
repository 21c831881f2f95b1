"""Whatever the code advises to type, a test types, or it is said why none can.

A command that is new is in neither list, and fails here.
"""

from __future__ import annotations

import ast
import re
from typing import Iterator

from tests.docs.advised import TYPED
from tests.docs.blocks import REPOSITORY

PACKAGE = REPOSITORY / "jetson_mamba"
# As a shell takes them; what is filled in stands as {}.
COMMAND = re.compile(
    r"\bjetson-mamba (install|enable|disable|run|status|doctor|verify|copies|diff|bench|demo)\b"
    r"|\bapt(-get)? install\b|\} (un)?install (-|\{|')|-m (pip|venv|ensurepip)\b"
    r"|\b(export|unset) (JETSON|\{)|\bgit -C\b|^mv "
)


def texts(node: ast.AST, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text of a module but docstrings, with the function that it is in."""
    for child in ast.iter_child_nodes(node):
        inside = name
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)):
            inside = f"{name}.{child.name}" if name else child.name
        if isinstance(child, ast.JoinedStr):
            parts = [
                each.value if isinstance(each, ast.Constant) else "{}" for each in child.values
            ]
            yield inside, "".join(map(str, parts))
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield inside, child.value
        elif not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):
            yield from texts(child, inside)


def part(of: ast.expr) -> str:
    """A part of a text that is put together."""
    return str(of.value) if isinstance(of, ast.Constant) else "{}"


def found() -> set[str]:
    """The functions that make a command, as the table names them."""
    return {
        f"{path.relative_to(PACKAGE).as_posix()}:{name}"
        for path in PACKAGE.rglob("*.py")
        for name, text in texts(ast.parse(path.read_text(encoding="utf-8")))
        if COMMAND.search(text)
    }


def test_each_command_that_is_advised_is_typed_or_says_why_not() -> None:
    assert found() - set(TYPED) == set(), "add it to tests/docs/advised.py, with its test"
    assert set(TYPED) - found() == set(), "nothing advises it"


def test_the_tests_that_are_named_are_there() -> None:
    for where in {each for each in TYPED.values() if each.startswith("tests/")}:
        file, _, name = where.partition("::")
        assert f"def {name}(" in (REPOSITORY / file).read_text(encoding="utf-8"), where


def test_a_command_is_known_as_one_however_it_is_put_together() -> None:
    told = ast.parse(
        "def f():\n"
        '    """In words: jetson-mamba install."""\n'
        "    yield g(f'{pip} install {name}', 'unset JETSON_MAMBA', 'install it')\n"
        "    return f'{a} && apt install b'\n"
    )
    commands = [text for _, text in texts(told) if COMMAND.search(text)]
    assert commands == ["{} install {}", "unset JETSON_MAMBA", "{} && apt install b"]
