"""Finds how a text uses the compiled extensions.

A name is *settled* where one import binds it for the whole module, whatever happens, and every use
of it is a call in a known form, or a question whether it is there: such calls become calls of the
op. Any other name is bound *in any form* instead, to functions that find out by what they are
given which form a call has; then the text says itself where that name reaches.
"""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING, Iterator, NamedTuple

from jetson_mamba.errors import Refused
from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.scopes import bound_name, imported

if TYPE_CHECKING:
    from jetson_mamba.rewrite.calls import Call, Rename
    from jetson_mamba.rewrite.draft import Draft
    from jetson_mamba.rewrite.extensions import Import

# What a failed import raises, or a handler that catches it says.
FAILURES = ("ImportError", "ModuleNotFoundError", "Exception", "BaseException")


class Use(NamedTuple):
    """A call of the function ``origin`` of an extension, which ``edit`` replaces."""

    call: ast.Call
    origin: str
    edit: Call | Rename


class Uses:
    """The imports of extensions in a draft, and what becomes of their names."""

    def __init__(self, draft: Draft) -> None:
        from jetson_mamba.rewrite.calls import Call, Rename
        from jetson_mamba.rewrite.extensions import Import

        self._draft = draft
        self.modules: dict[str, Import] = {}
        self.functions: dict[str, Call | Rename] = {}
        for edit in draft.edits:
            if isinstance(edit, Import):
                self.modules[edit.of] = edit
            elif isinstance(edit, (Call, Rename)):
                self.functions.update((origin, edit) for origin in edit.functions)
        # Every statement that imports one of the modules, with the modules of its aliases.
        self.statements: list[ast.Import | ast.ImportFrom] = []
        # The name that each import binds, and what to: the same name may be bound several times.
        self._bound: dict[str, list[tuple[ast.alias, str]]] = {}
        for node in ast.walk(draft.tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self._import(node)
        self._loads: dict[str, list[ast.Name]] = {name: [] for name in self._bound}
        for node in ast.walk(draft.tree):
            if (
                isinstance(node, ast.Name)
                and isinstance(node.ctx, ast.Load)
                and node.id in self._bound
            ):
                self._loads[node.id].append(node)
        self.calls: list[Use] = []
        self.tests: list[tuple[ast.Name, Import]] = []
        self.settled = {name for name in self._bound if self._settle(name)}

    def module_of(self, name: str) -> Import | None:
        """The edit of the module that a dotted name is, or is in."""
        while name and name not in self.modules:
            name = name.rpartition(".")[0]
        return self.modules.get(name)

    def origin(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str | None:
        """What an alias binds, if there is something to put in its place."""
        origin = imported(node, alias)
        if isinstance(node, ast.Import):
            return origin if alias.name in self.modules else None
        return origin if origin in self.functions or origin in self.modules else None

    def _import(self, node: ast.Import | ast.ImportFrom) -> None:
        if isinstance(node, ast.ImportFrom):
            concerned = node.level == 0 and node.module in self.modules
        else:
            concerned = any(alias.name in self.modules for alias in node.names)
        if concerned:
            self.statements.append(node)
        elif _root(node) in self.modules:
            self._leave(node, "it is none that is known")
        for alias in node.names if concerned else ():
            origin = self.origin(node, alias)
            if origin is not None:
                self._bound.setdefault(bound_name(alias, node), []).append((alias, origin))
            elif isinstance(node, ast.ImportFrom) or alias.name.split(".")[0] in self.modules:
                self._leave(node, f"nothing of jetson_mamba stands for {alias.name}")

    def _leave(self, node: ast.Import | ast.ImportFrom, reason: str) -> None:
        for alias in node.names:
            module = node.module if isinstance(node, ast.ImportFrom) else alias.name
            if module and module.split(".")[0] in self.modules:
                self._draft.left_imports.add((node.lineno, module))
        self._draft.leave(f"the import of {_root(node)} on line {node.lineno}", reason)

    def _settle(self, name: str) -> bool:
        """Whether a name is settled; its calls and tests are noted if so.

        Raises :class:`Refused` for a call in an unknown form where only an extension can be meant.
        """
        origins = {origin for _, origin in self._bound[name]}
        if self._draft.scopes.bound_inside(name) or len(origins) > 1:
            return False
        (origin,) = origins
        aliases = {id(alias) for alias, _ in self._bound[name]}
        others = [b for b in self._draft.scopes.bindings(name) if id(b) not in aliases]
        around = [self._draft.parents[id(alias)] for alias, _ in self._bound[name]]
        statements = [statement for statement in around if isinstance(statement, ast.stmt)]
        if not all(self._only_says_none(other, statements) for other in others):
            return False
        found = [self._use(node, origin) for node in self._loads[name]]
        if not all(found) or not all(self._is_sure(statement) for statement in statements):
            return False
        for use in found:
            if isinstance(use, Use):
                self.calls.append(use)
            elif use is not None:
                self.tests.append(use)
        return True

    def _use(self, node: ast.Name, origin: str) -> Use | tuple[ast.Name, Import] | None:
        """The call, or the test, that a name of ``origin`` stands in; None for any other use."""
        around, inner = self._draft.parents[id(node)], node
        if node in tested(around):
            module = self.module_of(origin)
            assert module is not None
            return node, module
        expression: ast.expr = inner
        while isinstance(around, ast.Attribute) and origin in self.modules:
            origin = f"{origin}.{around.attr}"
            expression, around = around, self._draft.parents[id(around)]
        if not isinstance(around, ast.Call) or around.func is not expression:
            return None
        edit = self.functions.get(origin)
        if edit is None:
            if origin in self.modules or origin.rpartition(".")[2].startswith("__"):
                return None
            raise Refused(
                f"line {around.lineno} refers to {origin} in a way that is not a call in a known "
                "form"
            )
        return Use(around, origin, edit) if edit.fits(around, origin) else None

    def _only_says_none(self, binding: ast.AST, imports: list[ast.stmt]) -> bool:
        """Whether a binding is to None, before the import or where that failed."""
        statement: ast.AST = binding
        while not isinstance(statement, ast.stmt):
            statement = self._draft.parents[id(statement)]
        if not isinstance(statement, ast.Assign):
            return False
        values = statement.value
        elements = values.elts if isinstance(values, ast.Tuple) else [values]
        if not all(nodes.is_none(value) for value in elements):
            return False
        around = self._draft.parents[id(statement)]
        for node in imports:
            tried = self._draft.parents[id(node)]
            if isinstance(tried, ast.Try) and around in tried.handlers:
                continue
            before = isinstance(around, ast.Module) and statement.lineno < node.lineno
            if not before:
                return False
        return True

    def _is_sure(self, statement: ast.stmt) -> bool:
        """Whether an import is one that every run of the module comes to, failing or not.

        It stands at module level, or first in a ``try`` whose handlers are for a failed import:
        what is imported in its place does not fail.
        """
        around = self._draft.parents[id(statement)]
        if isinstance(around, ast.Module):
            return True
        if not isinstance(around, ast.Try) or statement not in around.body:
            return False
        before = around.body[: around.body.index(statement)]
        if isinstance(statement, ast.Import):
            before.append(statement)
        return (
            isinstance(self._draft.parents[id(around)], ast.Module)
            and all(each in self.statements and not self._keeps(each) for each in before)
            and all(_catches_failures(handler) for handler in around.handlers)
        )

    def _keeps(self, statement: ast.stmt) -> bool:
        """Whether something of a statement of imports stays, and may fail."""
        assert isinstance(statement, (ast.Import, ast.ImportFrom))
        return any(self.origin(statement, alias) is None for alias in statement.names)


def tested(node: ast.AST) -> list[ast.expr]:
    """The expressions that a node asks for their truth, or compares with None."""
    if isinstance(node, ast.Compare):
        others = node.comparators
        if len(others) == 1 and nodes.is_none(others[0]):
            return [node.left]
    if isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
        return [node.test]
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return [node.operand]
    return []


def _root(node: ast.Import | ast.ImportFrom) -> str:
    """The first package that a statement imports from, of those that are not relative."""
    if isinstance(node, ast.ImportFrom):
        return "" if node.level else str(node.module).split(".")[0]
    return node.names[0].name.split(".")[0]


def _catches_failures(handler: ast.ExceptHandler) -> bool:
    if handler.type is None:
        return True
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return all(nodes.dotted(kind) in FAILURES for kind in kinds)


def imports_of(tree: ast.AST, modules: set[str]) -> Iterator[tuple[int, str]]:
    """The line and the module of each import of ``modules``, or of what is in them."""
    roots = {module.split(".")[0] for module in modules}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            if str(node.module).split(".")[0] in roots:
                yield node.lineno, str(node.module)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] in roots:
                    yield node.lineno, alias.name
