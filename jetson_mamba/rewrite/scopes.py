"""What the names of a text stand for, as far as that is sure.

A name counts as what an import binds only where nothing else could: no other statement of the
module, no function, class or comprehension, no ``global``, no star. ``symtable`` knows what binds a
name inside those, in whatever syntax a Python has for it.
"""

from __future__ import annotations

import ast
import symtable
from typing import Iterator

from jetson_mamba.rewrite import nodes

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Scopes:
    """The bindings of a module's names."""

    def __init__(self, text: str, tree: ast.Module) -> None:
        self._inner: set[str] = set()
        self._mentioned: set[str] = set()
        for table in _tables(symtable.symtable(text, "<text>", "exec")):
            for symbol in table.get_symbols():
                self._mentioned.add(symbol.get_name())
                if table.get_type() != "module" and (
                    symbol.is_local() or (symbol.is_declared_global() and _binds(symbol))
                ):
                    self._inner.add(symbol.get_name())
        # What binds each name at module level: an alias of an import, or any other node.
        self._outer: dict[str, list[ast.AST]] = {}
        self._stars: list[ast.alias] = []
        self._aliases: dict[int, ast.Import | ast.ImportFrom] = {}
        for statement in tree.body:
            self._collect(statement)

    def mentions(self, name: str) -> bool:
        """Whether the text uses a name in any way, parameters included."""
        return name in self._mentioned

    def bound_inside(self, name: str) -> bool:
        """Whether anything but a statement of the module itself binds a name."""
        return name in self._inner

    def bindings(self, name: str) -> list[ast.AST]:
        """What binds a name at module level, a star that may do so included."""
        return [*self._outer.get(name, []), *self._stars]

    def origin(self, node: ast.AST) -> str | None:
        """The dotted name that an expression stands for, by the imports of its first name.

        None where that name is bound otherwise, or more than once to different things. A name that
        nothing binds stands for itself.
        """
        name = nodes.dotted(node)
        if name is None:
            return None
        first, dot, rest = name.partition(".")
        if self.bound_inside(first):
            return None
        origins = {self._imported(each) for each in self.bindings(first)} or {first}
        (origin, *others) = origins
        return None if others or origin is None else f"{origin}{dot}{rest}"

    def _imported(self, binding: ast.AST) -> str | None:
        if not isinstance(binding, ast.alias) or binding.name == "*":
            return None
        return imported(self._aliases[id(binding)], binding)

    def _bind(self, name: str, node: ast.AST) -> None:
        self._outer.setdefault(name, []).append(node)

    def _collect(self, node: ast.AST) -> None:
        """Note what a node binds in the scope that it stands in, not in those that it opens."""
        inside: Iterator[ast.AST] | list[ast.AST] = ast.iter_child_nodes(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                self._aliases[id(alias)] = node
                if alias.name == "*":
                    self._stars.append(alias)
                else:
                    self._bind(bound_name(alias, node), alias)
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            self._bind(node.name, node)
            inside = [*node.decorator_list, *_defaults(node.args)]
        elif isinstance(node, ast.ClassDef):
            self._bind(node.name, node)
            inside = [*node.decorator_list, *node.bases, *node.keywords]
        elif isinstance(node, ast.Lambda):
            inside = _defaults(node.args)
        elif isinstance(node, COMPREHENSIONS):
            # Their targets are their own; what := binds in them is not.
            inside = [each.target for each in ast.walk(node) if isinstance(each, ast.NamedExpr)]
        elif isinstance(node, ast.Name):
            if not isinstance(node.ctx, ast.Load):
                self._bind(node.id, node)
        elif isinstance(node, ast.ExceptHandler) or type(node).__name__.startswith("Match"):
            for field in ("name", "rest"):
                name = getattr(node, field, None)
                if isinstance(name, str):
                    self._bind(name, node)
        for child in inside:
            self._collect(child)


def bound_name(alias: ast.alias, statement: ast.stmt) -> str:
    """The name that an alias of an import binds."""
    if alias.asname:
        return alias.asname
    return alias.name.split(".")[0] if isinstance(statement, ast.Import) else alias.name


def imported(statement: ast.Import | ast.ImportFrom, alias: ast.alias) -> str | None:
    """The dotted name of what an alias of an import binds; None for relative imports."""
    if isinstance(statement, ast.Import):
        return alias.name if alias.asname else alias.name.split(".")[0]
    return None if statement.level else f"{statement.module}.{alias.name}"


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def _binds(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace()


def _defaults(arguments: ast.arguments) -> list[ast.AST]:
    return [each for each in (*arguments.defaults, *arguments.kw_defaults) if each is not None]
