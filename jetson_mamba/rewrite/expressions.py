"""Expressions in functions of a kind."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.edit import CORE

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class Expression(NamedTuple):
    """The expression ``of`` becomes ``becomes`` in every function that takes ``parameter``.

    Only where the first name in it stands for the module of that name, or the parameter itself is
    in it.
    """

    of: str
    becomes: str
    parameter: str

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    def concerns(self, source: bytes) -> bool:
        """Whether the last name in the expression stands in the source."""
        return self.of.rpartition(".")[2].partition("(")[0].encode() in source

    def find(self, draft: Draft) -> None:
        """Edit the expression wherever it stands in such a function."""
        wanted = nodes.expression(self.of)
        names = [each for each in ast.walk(wanted) if isinstance(each, ast.Name)]
        of_the_parameter = self.parameter in (each.id for each in names)
        if not of_the_parameter and draft.scopes.origin(names[0]) != names[0].id:
            return
        for function in ast.walk(draft.tree):
            if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                continue
            if self.parameter not in nodes.named(function.args):
                continue
            for node in ast.walk(function):
                if (
                    isinstance(node, ast.expr)
                    and nodes.same(node, wanted)
                    and not draft.is_substituted(node)
                ):
                    draft.replace_expression(node, self.becomes)
                    draft.apply(node.lineno, self)
