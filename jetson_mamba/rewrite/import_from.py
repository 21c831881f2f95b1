"""Names that another module has."""

from __future__ import annotations

import ast
import copy
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite.edit import CORE

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class ImportFrom(NamedTuple):
    """``from of import ...`` of any of ``names`` becomes ``from becomes import ...``."""

    of: str
    becomes: str
    names: tuple[str, ...]

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    def concerns(self, source: bytes) -> bool:
        """Whether one of the names stands in the source."""
        return any(name.encode() in source for name in self.names)

    def find(self, draft: Draft) -> None:
        """Edit the statements."""
        for node in ast.walk(draft.tree):
            if (
                isinstance(node, ast.ImportFrom)
                and is_from(node, self.of)
                and {alias.name for alias in node.names} & set(self.names)
                and not draft.is_substituted(node)
            ):
                rename(draft, node, self.becomes)
                draft.apply(node.lineno, self)


def is_from(node: ast.ImportFrom, module: str) -> bool:
    """Whether a statement imports from ``module``."""
    return not node.level and node.module == module


def rename(draft: Draft, node: ast.ImportFrom, module: str) -> None:
    """Let a statement import from another module, however it spells the one that it has."""
    start, end = draft.extent(node)
    tokens = [token for token in draft.tokens if start <= token.start < end]
    words = [token.string for token in tokens]
    first, after = words.index("from") + 1, words.index("import")
    draft.write_between(tokens[first].start, tokens[after - 1].end, module)
    # A node that the parser made, whatever fields it has, under another module.
    edited = copy.copy(node)
    edited.module = module
    draft.substitute(node, edited)
