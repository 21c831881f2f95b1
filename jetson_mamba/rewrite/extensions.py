"""The imports of compiled extensions."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite.edit import CORE
from jetson_mamba.rewrite.scopes import bound_name

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft

# What imports the module that a string names, or finds out whether it could.
BY_STRING = ("importlib.import_module", "importlib.util.find_spec")


class Import(NamedTuple):
    """Imports of the module, or of names in it, import ``becomes`` in its place.

    What settled names stand for is replaced where they are used (:mod:`.uses`); other names are
    bound to the functions of the same names in ``becomes.any_form``.
    """

    of: str
    becomes: str

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    @property
    def any_form(self) -> str:
        """The module that takes the place of this one for names that are not settled."""
        return f"{self.becomes}.any_form.{self.of}"

    def concerns(self, source: bytes) -> bool:
        """Whether the module's name stands in the source."""
        return self.of.encode() in source

    def find(self, draft: Draft) -> None:
        """Edit the statements that import this module first, and the tests of its names."""
        for statement in draft.uses.statements:
            if self._first_module(draft, statement) == self:
                self._statement(draft, statement)
        for name, module in draft.uses.tests:
            if module == self:
                draft.needed.add(self.becomes)
                draft.replace_expression(name, draft.name_of(self.becomes))
                draft.apply(name.lineno, self)
        for node in ast.walk(draft.tree):
            if isinstance(node, ast.Constant) and node.value == self.of:
                self._string(draft, node)

    def _first_module(self, draft: Draft, statement: ast.Import | ast.ImportFrom) -> Import:
        if isinstance(statement, ast.ImportFrom):
            return draft.uses.modules[statement.module or ""]
        names = [alias.name for alias in statement.names if alias.name in draft.uses.modules]
        return draft.uses.modules[names[0]]

    def _statement(self, draft: Draft, statement: ast.Import | ast.ImportFrom) -> None:
        from_module = isinstance(statement, ast.ImportFrom)
        imports: list[str] = []
        froms: dict[str, list[str]] = {}
        changes = False
        for alias in statement.names:
            written = f"{alias.name} as {alias.asname}" if alias.asname else alias.name
            name = bound_name(alias, statement)
            if draft.uses.origin(statement, alias) is None:
                if isinstance(statement, ast.ImportFrom):
                    froms.setdefault(self.of, []).append(written)
                else:
                    imports.append(written)
                continue
            changes = True
            if name in draft.uses.settled:
                imports.append(draft.import_of(self.becomes))
                draft.imported.add(self.becomes)
            elif from_module:
                froms.setdefault(self.any_form, []).append(written)
            else:
                root = alias.name if alias.asname else alias.name.split(".")[0]
                module = draft.uses.modules.get(root, draft.uses.modules[alias.name])
                imports.append(f"{module.any_form} as {name}")
        if not changes:
            return
        texts = [f"import {', '.join(dict.fromkeys(imports))}"] if imports else []
        # What stays may fail, as it did: it comes last.
        for module_name in sorted(froms, key=lambda each: each == self.of):
            texts.append(f"from {module_name} import {', '.join(froms[module_name])}")
        # From Python 3.15 on an import may be lazy.
        start = draft.extent(statement)[0]
        lazy = any(token.start == start and token.string == "lazy" for token in draft.tokens)
        draft.replace_statement(statement, [f"lazy {text}" if lazy else text for text in texts])
        draft.apply(statement.lineno, self)

    def _string(self, draft: Draft, node: ast.Constant) -> None:
        call = draft.parents[id(node)]
        if (
            isinstance(call, ast.Call)
            and call.args == [node]
            and not call.keywords
            and draft.scopes.origin(call.func) in BY_STRING
            # What is asked for there must be what is imported elsewhere.
            and self.of not in {module for _, module in draft.left_imports}
        ):
            draft.replace_expression(node, f'"{self.any_form}"')
            draft.apply(node.lineno, self)
        else:
            draft.leave(f"{self.of} in a string on line {node.lineno}", "it is no import")
