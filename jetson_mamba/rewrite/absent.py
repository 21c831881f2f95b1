"""Names of another package that are None where it cannot be imported."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Iterator, NamedTuple

from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.edit import CORE
from jetson_mamba.rewrite.placeholder import catches
from jetson_mamba.rewrite.scopes import bound_name

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class Absent(NamedTuple):
    """What a text imports as ``of``, or sets to None where it cannot, is ``becomes`` in that case.

    Only in a text that has ``beside``, its own way without the package: a text that has another
    means something else. Said after the last line, where it is known.
    """

    of: str
    becomes: str
    beside: str

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    def concerns(self, source: bytes) -> bool:
        """Whether both names stand in the source."""
        return self.beside.encode() in source and self.of.rpartition(".")[2].encode() in source

    def find(self, draft: Draft) -> None:
        """Bind each such name anew."""
        if self.beside not in draft.text:
            return
        for node in draft.tree.body:
            if isinstance(node, ast.Try):
                for name in self._bound(node):
                    written = f"if {name} is None: {name} = {draft.ours(self.becomes)}"
                    draft.append(written, self)

    def _bound(self, node: ast.Try) -> Iterator[str]:
        """The names that a ``try`` binds to this, and to None where it cannot."""
        module, _, imported = self.of.rpartition(".")
        absent = {
            target.id
            for handler in node.handlers
            if catches(handler)
            for statement in ast.walk(handler)
            if isinstance(statement, ast.Assign)
            for each in statement.targets
            for target, value in _pairs(each, statement.value)
            if nodes.is_none(value)
        }
        for statement in node.body:
            if isinstance(statement, ast.ImportFrom) and not statement.level:
                for alias in statement.names:
                    name = bound_name(alias, statement)
                    if statement.module == module and alias.name == imported and name in absent:
                        yield name


def _pairs(target: ast.expr, value: ast.expr) -> Iterator[tuple[ast.Name, ast.expr]]:
    """The names of an assignment, each with what it is given."""
    if isinstance(target, ast.Name):
        yield target, value
    elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        for each, given in zip(target.elts, value.elts):
            yield from _pairs(each, given)
