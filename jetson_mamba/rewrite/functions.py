"""The edit that leads past a function of upstream's."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.edit import Edit, NotTaken

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


def defined(tree: ast.Module, name: str) -> ast.FunctionDef | None:
    """The function ``f``, or the method ``C.f``, where a module defines one of that name."""
    *classes, function = name.split(".")
    body = tree.body
    for each in classes:
        found = [x for x in body if isinstance(x, ast.ClassDef) and x.name == each]
        if len(found) != 1:
            return None
        body = found[0].body
    functions = [x for x in body if isinstance(x, ast.FunctionDef) and x.name == function]
    return functions[0] if len(functions) == 1 else None


def _lacks_method(tree: ast.Module, name: str) -> bool:
    """Whether ``name`` is ``C.f`` of a class in which nothing is called so."""
    first, dot, method = name.partition(".")
    classes = [x for x in tree.body if isinstance(x, ast.ClassDef) and x.name == first]
    inside = [each for found in classes for each in ast.walk(found)]
    names = {getattr(x, "asname", None) or getattr(x, "name", None) for x in inside}
    names |= {getattr(each, "id", None) for each in inside}
    return bool(dot and classes) and method not in names


def parameters(function: ast.FunctionDef, name: str) -> list[str]:
    """The names of what a function takes.

    Raises :class:`NotTaken` if it takes a variable number.
    """
    if function.args.vararg or function.args.kwarg:
        raise NotTaken(name, "it takes a variable number of arguments")
    return nodes.named(function.args)


def _order(tree: ast.Module, name: str) -> list[str]:
    """What the functions of a name take by position, of the first that says so; perhaps nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == name and not node.args.vararg:
            return [each.arg for each in node.args.posonlyargs + node.args.args]
    return []


def known_function(
    draft: Draft, name: str, taken: tuple[str, ...], unchecked: str | None, edit: Edit
) -> ast.FunctionDef | None:
    """The function that a way past replaces; None where the text has none of that name.

    Raises :class:`NotTaken` unless it is known by its digest and takes nothing that is not in
    ``taken``. Before that, where ``unchecked`` names an op, the function is bound anew so that it
    serves on devices that Triton has no kernels for.
    """
    first = name.split(".", maxsplit=1)[0]
    if not draft.scopes.bindings(first):
        return None
    if _lacks_method(draft.tree, name):
        return None
    function = defined(draft.tree, name)
    reason = None
    if not draft.known.releases(first):
        reason = "neither it nor all that it calls is the text of a release"
    elif function is None:
        reason = "the module does not define it once"
    else:
        unknown = [each for each in parameters(function, name) if each not in taken]
        if unknown:
            reason = f"it takes {', '.join(unknown)}"
    if reason is None:
        return function
    reason += "; its own code runs"
    if unchecked is not None:
        reason += _serve_unchecked(draft, name, unchecked, edit)
    raise NotTaken(name, reason)


def _serve_unchecked(draft: Draft, name: str, op: str, edit: Edit) -> str:
    """Bind a function anew to what runs its own code where that can run; what that means."""
    if not draft.known.launches_triton(name):
        return ""
    if draft.known.asks_for_device(name):
        return ", which asks for the device itself"
    given = [name, op, repr(name), *map(repr, _order(draft.tree, name))]
    written = draft.ours(f"jetson_mamba.ops.unchecked({', '.join(given)})")
    # It may stand in a branch that is not run.
    draft.append(f'if "{name}" in globals(): {name} = {written}', edit)
    return f", and {op} where Triton has no kernels for the device"
