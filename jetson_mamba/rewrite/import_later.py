"""Names of a package that is imported at their first use."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite.edit import CORE
from jetson_mamba.rewrite.import_from import is_from, rename

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class ImportLater(NamedTuple):
    """``from of import ...`` becomes ``from becomes import ...``, where names wait for their use.

    Only where ``becomes`` has all the names, and in a statement of the module itself: one in a
    ``try`` asks whether there is such a package, and is answered when it is asked.
    """

    of: str
    becomes: str
    names: tuple[str, ...]

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    def concerns(self, source: bytes) -> bool:
        """Whether the module is named in the source."""
        return self.of.encode() in source

    def find(self, draft: Draft) -> None:
        """Edit the statements."""
        for node in draft.tree.body:
            if (
                isinstance(node, ast.ImportFrom)
                and is_from(node, self.of)
                and {alias.name for alias in node.names} <= set(self.names)
            ):
                rename(draft, node, self.becomes)
                draft.apply(node.lineno, self)
