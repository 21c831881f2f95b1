"""The edit that has something imported in place of a package that is missing."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite.edit import CORE
from jetson_mamba.rewrite.uses import FAILURES

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class Placeholder(NamedTuple):
    """Imports of the package ``of``, and of what is in it, import of the module ``becomes``.

    That has every name that is asked of it. Where a handler waits for an import to fail, the text
    has an answer of its own: there the module is ``failing``, or without one the import stays.
    After the last line stands ``then``, a statement, if there is one.
    """

    of: str
    becomes: str
    failing: str | None = None
    then: str | None = None

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    def concerns(self, source: bytes) -> bool:
        """Whether the package's name stands in the source."""
        return self.of.encode() in source

    def find(self, draft: Draft) -> None:
        """Edit the statements."""
        replaced = [
            self._edit(draft, node)
            for node in ast.walk(draft.tree)
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
        if any(replaced) and self.then is not None:
            draft.append(draft.ours(self.then), self)

    def _edit(self, draft: Draft, node: ast.Import | ast.ImportFrom) -> bool:
        if isinstance(node, ast.ImportFrom):
            mine = node.level == 0 and self._inside(node.module or "") is not None
        else:
            mine = any(self._inside(alias.name) is not None for alias in node.names)
        if not mine or draft.is_substituted(node):
            return False
        if any(alias.name == "*" for alias in node.names):
            draft.leave(f"from {self.of} import * on line {node.lineno}", "its names are not told")
            return False
        handled = _is_handled(draft, node)
        becomes = self.failing if handled else self.becomes
        if becomes is None:
            return False
        start = draft.extent(node)[0]
        lazy = any(token.start == start and token.string == "lazy" for token in draft.tokens)
        draft.replace_statement(node, self._written(node, becomes, "lazy " if lazy else ""))
        draft.apply(node.lineno, self)
        return not handled

    def _written(self, node: ast.Import | ast.ImportFrom, becomes: str, lazy: str) -> list[str]:
        package, _, module = becomes.rpartition(".")
        texts = []
        for alias in node.names:
            if isinstance(node, ast.ImportFrom):
                within = self._inside(node.module or "") or ""
                name, inside = alias.asname or alias.name, f"{within}.{alias.name}"
            else:
                found = self._inside(alias.name)
                if found is None:
                    given = f" as {alias.asname}" if alias.asname else ""
                    texts.append(f"{lazy}import {alias.name}{given}")
                    continue
                # Without another name, what is bound is the package.
                name, inside = alias.asname or self.of, found if alias.asname else ""
            texts.append(f"{lazy}from {package} import {module} as {name}")
            if inside:
                texts.append(f"{name} = {name}{inside}")
        return texts

    def _inside(self, name: str) -> str | None:
        """What follows the package's name in that of a module in it; None for any other."""
        return name[len(self.of) :] if f"{name}.".startswith(f"{self.of}.") else None


def _is_handled(draft: Draft, node: ast.stmt) -> bool:
    """Whether the text says what is to be done where an import fails."""
    inner: ast.AST = node
    while id(inner) in draft.parents:
        outer = draft.parents[id(inner)]
        if (
            isinstance(outer, ast.Try)
            and inner in outer.body
            and any(catches(handler) for handler in outer.handlers)
        ):
            return True
        if isinstance(outer, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return False
        inner = outer
    return False


def catches(handler: ast.ExceptHandler) -> bool:
    """Whether a handler is for imports that fail."""
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(isinstance(kind, ast.Name) and kind.id in FAILURES for kind in kinds)
