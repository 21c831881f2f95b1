"""Nodes of syntax trees, which always come out of the parser.

A node that is made by hand lacks the fields that a later Python adds and its parser fills, such as
``is_lazy`` of imports in Python 3.15, and would differ from the same code parsed.
"""

from __future__ import annotations

import ast
import gc
from contextlib import contextmanager
from typing import Iterator

POSITIONS = ("lineno", "col_offset", "end_lineno", "end_col_offset")


@contextmanager
def many() -> Iterator[None]:
    """A context that makes whole trees: the collector, which would look through them, rests."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def expression(text: str) -> ast.expr:
    """The tree of an expression, without positions: it stands on whatever line it is put."""
    (statement,) = statements(text)
    assert isinstance(statement, ast.Expr)
    return statement.value


def statements(text: str) -> list[ast.stmt]:
    """The trees of statements, without positions."""
    body = ast.parse(text).body
    for statement in body:
        for node in ast.walk(statement):
            for attribute in POSITIONS:
                if hasattr(node, attribute):
                    delattr(node, attribute)
    return body


def keyword(name: str, value: ast.expr) -> ast.keyword:
    """``name=value`` in a call."""
    parsed = expression(f"_({name}=_)")
    assert isinstance(parsed, ast.Call)
    (made,) = parsed.keywords
    made.value = value
    return made


def call(function: str, arguments: list[ast.expr], keywords: list[ast.keyword]) -> ast.Call:
    """A call of what the text ``function`` says."""
    made = expression(f"{function}()")
    assert isinstance(made, ast.Call)
    made.args, made.keywords = arguments, keywords
    return made


def conditional(test: ast.expr, body: ast.expr, otherwise: ast.expr) -> ast.IfExp:
    """``body if test else otherwise``."""
    made = expression("_ if _ else _")
    assert isinstance(made, ast.IfExp)
    made.test, made.body, made.orelse = test, body, otherwise
    return made


def same(one: ast.AST, other: ast.AST) -> bool:
    """Whether two trees say the same, wherever they stand."""
    return ast.dump(one) == ast.dump(other)


def dotted(node: ast.AST) -> str | None:
    """``a.b.c`` of names and attributes; None for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = dotted(node.value)
        return f"{base}.{node.attr}" if base else None
    return None


def parents(tree: ast.AST) -> dict[int, ast.AST]:
    """The node around each node, by its id."""
    return {id(child): node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}


def blocks(statement: ast.stmt) -> Iterator[list[ast.stmt]]:
    """The lists of statements directly inside a statement."""
    for field in ("body", "orelse", "finalbody"):
        yield getattr(statement, field, [])
    for handler in getattr(statement, "handlers", []):
        yield handler.body
    for case in getattr(statement, "cases", []):
        yield case.body


def named(arguments: ast.arguments) -> list[str]:
    """The names of parameters: by position only, either way and by name only."""
    return [each.arg for each in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]


def is_none(node: ast.AST | None) -> bool:
    """Whether an expression is the constant None."""
    return isinstance(node, ast.Constant) and node.value is None
