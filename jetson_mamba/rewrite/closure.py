"""The digest of a function with all that it reaches in its distribution.

In it are the function, the functions, classes and constants of the module that it names, what
those name, and the same across the modules of the distribution, down to the kernels: decorators,
defaults and annotations too. Statements of a module that do more than bind a name are in it
whenever the module is. Not in it are formatting, comments, docstrings, the names of local
variables, the order of definitions and the style of imports. What comes from elsewhere, such as
torch and Triton, is in it by its dotted name.

The digest of a text is the same on every Python: it is made of what a syntax tree says, not of how
one Python writes it down.
"""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from typing import Iterator, NamedTuple

from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.scopes import bound_name
from jetson_mamba.texts import Texts, resolve

# Their imports are edited, whichever way the text writes them. As origins are written.
EXTENSIONS = ("/causal_conv1d", "/causal_conv1d_cuda", "/selective_scan_cuda")
# What kernels are written in.
KERNELS = ("/triton", "/tilelang", "/cutlass")
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
# Fields that say where or how something was written, or what a node's place says already.
OF_NO_MEANING = ("ctx", "type_comment", "type_ignores")
# A function that asks for its own variables by name.
REFLECTION = frozenset(("locals", "vars", "eval", "exec", "globals"))


class Closure(NamedTuple):
    """The digest, and what was seen on the way.

    ``modules`` are those that were not found.
    """

    digest: str
    launches_triton: bool
    asks_for_device: bool
    modules: tuple[str, ...]


class _Written(NamedTuple):
    """A statement in the canonical spelling, and what it names: (module, name) pairs."""

    text: str
    names: frozenset[tuple[str, str]]
    asks_for_device: bool


def closure(texts: Texts, function: str) -> Closure:
    """The closure of a function or class of the target."""
    written: dict[tuple[str, str, int], str] = {}
    seen: set[tuple[str, str]] = set()
    missing: set[str] = set()
    launches_triton = asks_for_device = False
    waiting = [(texts.target, function)]
    while waiting:
        each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        name_of_module, name = each
        inside = f"{name_of_module}.{name}".lstrip(".")
        if name != "*" and texts.text(inside) is not None:
            waiting.append((inside, "*"))
        text = texts.text(name_of_module)
        if text is None:
            missing.add(name_of_module)
            launches_triton = launches_triton or ".triton." in f".{name_of_module}."
            continue
        module = _module(texts.package, name_of_module, text)
        for key, statement in module.statements(name):
            place = (name_of_module, *key)
            if place in written:
                continue
            written[place] = statement.text
            asks_for_device = asks_for_device or statement.asks_for_device
            for found in statement.names:
                if found[0].startswith("/"):
                    launches_triton = launches_triton or found[0].split(".")[0] in KERNELS
                else:
                    waiting.append(found)
    digest = hashlib.sha256()
    for place in sorted(written):
        digest.update(repr((place, written[place])).encode())
    digest.update(repr(sorted(missing)).encode())
    return Closure(
        digest.hexdigest()[:32], launches_triton, asks_for_device, tuple(sorted(missing))
    )


@lru_cache(maxsize=64)
def _module(package: str, name: str, text: str) -> _Module:
    return _Module(package, name, text)


class _Module:
    """The statements of a module by the names that they bind."""

    def __init__(self, package: str, name: str, text: str) -> None:
        self._package = package
        self.name = name
        try:
            body = ast.parse(text).body
        except (SyntaxError, ValueError):
            body = []
        # What each name is imported as; of those that are bound by imports only.
        self.origins: dict[str, str] = {}
        self.bindings: dict[str, list[ast.stmt]] = {}
        self._effects: list[ast.stmt] = []
        origins: dict[str, set[str]] = {}
        for statement in body:
            for bound, origin in self._bound(statement):
                origins.setdefault(bound, set()).add(origin)
                places = self.bindings.setdefault(bound, [])
                if statement not in places:
                    places.append(statement)
            if _has_effect(statement):
                self._effects.append(statement)
        for bound, found in origins.items():
            if "" in found:
                continue
            names = sorted(found - {"None"})
            if names and names[0].split(".")[0] in EXTENSIONS:
                self.origins[bound] = "|".join(names)
            elif names:
                self.origins[bound] = "|".join(sorted(found))
        for bound in self.origins:
            del self.bindings[bound]
        self._written: dict[int, _Written] = {}

    def statements(self, name: str) -> Iterator[tuple[tuple[str, int], _Written]]:
        """What binds a name, all that the module does beside, in canonical spelling.

        ``*`` stands for every name.
        """
        names = sorted(self.bindings) if name == "*" else [name]
        for each in names:
            if each in self.origins:
                reference = _references(self.origins[each])
                yield (each, 0), _Written(self.origins[each], reference, False)
            elif each not in self.bindings:
                yield (each, 0), _Written("not there", frozenset(), False)
            for number, statement in enumerate(self.bindings.get(each, [])):
                yield (each, number), self._spelled(statement)
        for number, statement in enumerate(self._effects):
            yield ("", number), self._spelled(statement)

    def _spelled(self, statement: ast.stmt) -> _Written:
        if id(statement) not in self._written:
            spelling = _Spelling(self)
            text = spelling.of(statement)
            self._written[id(statement)] = _Written(
                text, frozenset(spelling.names), spelling.asks_for_device
            )
        return self._written[id(statement)]

    def origin(self, node: ast.Import | ast.ImportFrom, alias: ast.alias) -> str:
        """What an alias binds: ``module:name`` of the distribution, ``/dotted.name`` of others."""
        if isinstance(node, ast.ImportFrom):
            module = resolve(self._package, self.name, node.level, node.module or "")
            if module is None:
                return f"/{'.' * node.level}{node.module}.{alias.name}"
            return f"{module}:{alias.name}"
        name = alias.name if alias.asname else alias.name.split(".")[0]
        module = resolve(self._package, self.name, 0, name)
        return f"/{name}" if module is None else f"{module}:*"

    def _bound(self, statement: ast.stmt) -> Iterator[tuple[str, str]]:
        """The names that a statement of the module binds; to what, where it is an import."""
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            for alias in statement.names:
                name = bound_name(alias, statement)
                yield name, self.origin(statement, alias)
        elif isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield statement.name, ""
        elif isinstance(statement, ast.Assign) and all(
            isinstance(each, ast.Name) for each in statement.targets
        ):
            for target in statement.targets:
                assert isinstance(target, ast.Name)
                yield target.id, "None" if nodes.is_none(statement.value) else ""
        else:
            inside = [each for block in nodes.blocks(statement) for each in block]
            for each in inside:
                yield from self._bound(each)
            for child in ast.iter_child_nodes(statement):
                for node in ast.walk(child) if child not in inside else ():
                    if isinstance(child, ast.ExceptHandler):
                        break
                    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
                        yield node.id, ""


class _Spelling:
    """Writes a statement down, and notes what it names."""

    def __init__(self, module: _Module) -> None:
        self._module = module
        self._locals: dict[str, str] = {}
        self._inside = False
        self.names: set[tuple[str, str]] = set()
        self.asks_for_device = False

    def of(self, node: object) -> str:
        """A node, a list of them or a plain value."""
        if isinstance(node, list):
            return f"[{','.join(self.of(each) for each in node)}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if isinstance(node, (ast.Name, ast.Attribute)):
            return self._reference(node)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            return self._import(node)
        if type(node).__name__ == "Index":  # Python 3.8
            return self.of(node.value)  # type: ignore[attr-defined]
        if type(node).__name__ == "ExtSlice":
            return f"Tuple(elts={self.of(node.dims)})"  # type: ignore[attr-defined]
        if isinstance(node, ast.Constant):
            self.asks_for_device = self.asks_for_device or node.value == "cpu"
            return f"{type(node.value).__name__}:{node.value!r}"
        if isinstance(node, SCOPES) and not self._inside:
            self._inside = True
            self._locals = _locals(node, self._module)
            text = self._fields(node)
            self._inside, self._locals = False, {}
            return text
        return self._fields(node)

    def _fields(self, node: ast.AST) -> str:
        fields = []
        for name, field in ast.iter_fields(node):
            value = field
            if name == "body" and isinstance(field, list):
                value = [each for each in field if not _says_nothing(each)]
            # A field that is empty may be missing on another Python.
            if name not in OF_NO_MEANING and (value or isinstance(value, ast.AST)):
                fields.append(f"{name}={self.of(value)}")
        return f"{type(node).__name__}({','.join(fields)})"

    def _reference(self, node: ast.Name | ast.Attribute) -> str:
        name = nodes.dotted(node)
        if isinstance(node, ast.Attribute) and (
            node.attr in ("is_cuda", "is_available")
            or (node.attr == "type" and getattr(node.value, "attr", None) == "device")
        ):
            self.asks_for_device = True
        if name is None:
            assert isinstance(node, ast.Attribute)
            return f"{self.of(node.value)}.{node.attr}"
        first, dot, rest = name.partition(".")
        module = self._module
        if first in self._locals:
            return f"{self._locals[first]}{dot}{rest}"
        if first in module.origins:
            origin = module.origins[first]
            self.names |= _references(origin)
            return f"<{origin}{dot}{rest}>"
        if first in module.bindings:
            self.names.add((module.name, first))
        return name

    def _import(self, node: ast.Import | ast.ImportFrom) -> str:
        """An import inside a statement: what it binds, whichever way it says so."""
        written = []
        for alias in node.names:
            origin = self._module.origin(node, alias)
            self.names |= _references(origin)
            name = bound_name(alias, node)
            written.append(f"{self._locals.get(name, name)}={origin}")
        return f"Import({','.join(sorted(written))})"


def _references(origin: str) -> frozenset[tuple[str, str]]:
    found = set()
    for each in origin.split("|"):
        module, colon, name = each.partition(":")
        if colon or module.startswith("/"):
            found.add((module, name))
    return frozenset(found)


def _locals(function: ast.AST, module: _Module) -> dict[str, str]:
    """Names for the variables of a function and of those inside it, by order of appearance.

    What is a parameter anywhere in it keeps its name, as does what the module binds.
    """
    kept: set[str] = set()
    stored: list[str] = []
    for node in _in_order(function):
        if isinstance(node, ast.arg):
            kept.add(node.arg)
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            kept.update(node.names)
        elif isinstance(node, ast.Name):
            if node.id in REFLECTION:
                return {}
            if not isinstance(node.ctx, ast.Load):
                stored.append(node.id)
    kept.update(module.bindings, module.origins)
    names = [name for name in dict.fromkeys(stored) if name not in kept]
    return {name: f"<{number}>" for number, name in enumerate(names)}


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


def _says_nothing(statement: object) -> bool:
    """Whether a statement is a docstring, or a string in the place of a comment."""
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _has_effect(statement: ast.stmt) -> bool:
    """Whether a statement of a module does anything but bind names of the module."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return False
    if isinstance(statement, (ast.Import, ast.ImportFrom, ast.Pass)) or _says_nothing(statement):
        return False
    if isinstance(statement, (ast.Assign, ast.AugAssign, ast.AnnAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        flat = [
            each
            for target in targets
            for each in (target.elts if isinstance(target, (ast.Tuple, ast.List)) else [target])
        ]
        return not all(isinstance(each, ast.Name) for each in flat)
    if isinstance(statement, (ast.If, ast.Try, ast.With)):
        return any(_has_effect(each) for block in nodes.blocks(statement) for each in block)
    return True
