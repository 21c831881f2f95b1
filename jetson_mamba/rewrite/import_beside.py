"""The imports of what the other edits wrote."""

from __future__ import annotations

import ast
import copy
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.edit import IMPORTS

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class ImportBeside(NamedTuple):
    """The statement that imports the module ``beside`` imports ``module`` as well.

    Only where an edit wrote what is in that module and none imports it. Where no statement of the
    module itself is ``import beside``, an import stands after the last line.
    """

    beside: str
    module: str

    @property
    def turn(self) -> int:
        """When it is made."""
        return IMPORTS

    def concerns(self, source: bytes) -> bool:
        """Not by itself: other edits need it."""
        return False

    def find(self, draft: Draft) -> None:
        """Import the module, if that is needed."""
        if self.module not in draft.needed - draft.imported:
            return
        draft.imported.add(self.module)
        written = draft.import_of(self.module)
        for statement in draft.tree.body:
            if (
                isinstance(statement, ast.Import)
                and (self.beside, None) in [(each.name, each.asname) for each in statement.names]
                and not draft.is_substituted(statement)
            ):
                end = draft.extent(statement)[1]
                draft.replace(end, end, f", {written}")
                (parsed,) = nodes.statements(f"import {written}")
                assert isinstance(parsed, ast.Import)
                edited = copy.copy(statement)
                edited.names = [*statement.names, *parsed.names]
                draft.substitute(statement, edited)
                draft.apply(statement.lineno, self)
                return
        draft.append(f"import {written}", self, first=True)
