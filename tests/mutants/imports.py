"""Kind: how the extensions are imported. The calls stand there, under whatever name."""

from __future__ import annotations

import ast
import random
from typing import Iterator

from tests.mutants.registry import EXTENSION_USERS, Change, mutation
from tests.mutants.texts import Edit, Text, unparse, walk

EXTENSIONS = ("selective_scan_cuda", "causal_conv1d_cuda")
COMPILED = {
    "selective_scan_cuda": ("fwd", "bwd"),
    "causal_conv1d_cuda": ("causal_conv1d_fwd", "causal_conv1d_bwd"),
}


def imports_of(text: Text) -> list[tuple[ast.Import, str]]:
    """The statements ``import extension``, and the extension."""
    return [
        (node, alias.name)
        for node in walk(text.tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name in EXTENSIONS and len(node.names) == 1 and alias.asname is None
    ]


def imports_from(text: Text, *modules: str) -> list[ast.ImportFrom]:
    return [
        node
        for node in walk(text.tree)
        if isinstance(node, ast.ImportFrom) and node.module in modules
    ]


CONV = ("causal_conv1d", "causal_conv1d.cpp_functions")


@mutation(*EXTENSION_USERS)
def module_alias(text: Text, choice: random.Random) -> Iterator[Change]:
    """``import causal_conv1d_cuda as ccc``."""
    for node, name in imports_of(text):
        short = "".join(part[0] for part in name.split("_"))
        edits = [text.replace(node, f"import {name} as {short}")]
        yield Change(name, text.edited(*edits, *text.renamed(text.tree, name, short)))


@mutation(*EXTENSION_USERS)
def name_alias(text: Text, choice: random.Random) -> Iterator[Change]:
    """``from causal_conv1d import causal_conv1d_fn as own``."""
    for node in imports_from(text, *CONV):
        names = [alias.name for alias in node.names]
        written = ", ".join(f"{name} as own_{name}" for name in names)
        edits = [text.replace(node, f"from {node.module} import {written}")]
        for name in names:
            edits += text.renamed(text.tree, name, f"own_{name}")
        yield Change(str(node.module), text.edited(*edits))


@mutation(*EXTENSION_USERS)
def functions_of_the_module(text: Text, choice: random.Random) -> Iterator[Change]:
    """``from selective_scan_cuda import fwd``, with what is used of it."""
    for node, name in imports_of(text):
        uses = [
            each
            for each in walk(text.tree)
            if isinstance(each, ast.Attribute) and unparse(each.value) == name
        ]
        tests = [each for each in walk(text.tree) if isinstance(each, ast.Name) and each.id == name]
        used = sorted({each.attr for each in uses} or set(COMPILED[name]))
        inside = {id(each.value) for each in uses}
        edits = [text.replace(each, f"own_{each.attr}") for each in uses]
        # A test whether the module is there is one of its function, an assignment one to it.
        edits += [text.replace(each, f"own_{used[0]}") for each in tests if id(each) not in inside]
        written = ", ".join(f"{each} as own_{each}" for each in used)
        yield Change(name, text.edited(text.replace(node, f"from {name} import {written}"), *edits))


@mutation(*EXTENSION_USERS)
def in_functions(text: Text, choice: random.Random) -> Iterator[Change]:
    """An extension is imported where it is used, and nowhere else."""
    for node, name in imports_of(text):
        if node not in text.tree.body:
            continue
        users = [
            function
            for _, function in text.functions()
            if any(isinstance(each, ast.Name) and each.id == name for each in walk(function))
        ]
        edits = [text.at_head(function, f"import {name}") for function in users]
        yield Change(name, text.edited(text.remove(node), *edits))


@mutation(*EXTENSION_USERS)
def again_in_a_function(text: Text, choice: random.Random) -> Iterator[Change]:
    """An extension is imported by the module and once more by a function."""
    for _, name in imports_of(text):
        for function_name, function in text.functions():
            if any(isinstance(each, ast.Name) and each.id == name for each in walk(function)):
                yield Change(
                    f"{name} {function_name}",
                    text.edited(text.at_head(function, f"import {name}")),
                )
                break


GUARDS = {
    "import error": "try:\n    {0}\nexcept ImportError:\n    {1} = None",
    "two errors": "try:\n    {0}\nexcept (ImportError, ModuleNotFoundError):\n    {1} = None",
    "any error": "try:\n    {0}\nexcept Exception as error:\n    {1} = None\n"
    "    own_reason = error",
    "else": "try:\n    {0}\nexcept ImportError:\n    {1} = None\n    own_has_it = False\n"
    "else:\n    own_has_it = True",
    "finally": "try:\n    {0}\nfinally:\n    own_tried = True",
    "flag": "own_has_it = True\ntry:\n    {0}\nexcept ImportError:\n    own_has_it = False",
    "set before": "{1} = None\ntry:\n    {0}\nexcept ImportError:\n    pass",
    "suppressed": "import contextlib\n{1} = None\nwith contextlib.suppress(ImportError):\n    {0}",
    "condition": "import os\nif os.environ.get('OWN_SWITCH') != 'off':\n    {0}\n"
    "else:\n    {1} = None",
}


@mutation(*EXTENSION_USERS)
def guarded(text: Text, choice: random.Random) -> Iterator[Change]:
    """An import that stood by itself is guarded, in each way that forks do."""
    for node, name in imports_of(text):
        if node not in text.tree.body:
            continue
        for style, guard in GUARDS.items():
            code = guard.format(text.of(node), name)
            yield Change(f"{name} {style}", text.edited(text.remove(node), text.after(node, code)))


@mutation(*EXTENSION_USERS)
def guarded_otherwise(text: Text, choice: random.Random) -> Iterator[Change]:
    """The guard around the convolution's imports is one for each of them, or has gone."""
    for node in text.tree.body:
        if not isinstance(node, ast.Try) or "causal_conv1d" not in text.of(node):
            continue
        bare = "\n".join(text.of(each) for each in node.body)
        yield Change("gone", text.edited(text.replace(node, bare)))
        each_one = "\n".join(
            f"try:\n    {text.of(each)}\nexcept ImportError:\n    "
            + " = ".join(alias.asname or alias.name for alias in each.names)
            + " = None"
            for each in node.body
            if isinstance(each, (ast.Import, ast.ImportFrom))
        )
        yield Change("each", text.edited(text.replace(node, each_one)))
        names = [
            alias.name
            for each in node.body
            if isinstance(each, (ast.Import, ast.ImportFrom))
            for alias in each.names
        ]
        tuples = f"{', '.join(names)} = {', '.join(['None'] * len(names))}"
        body = "\n    ".join(text.of(each) for each in node.body)
        in_one = f"try:\n    {body}\nexcept ImportError:\n    {tuples}"
        yield Change("tuple", text.edited(text.replace(node, in_one)))


@mutation(*EXTENSION_USERS)
def on_one_line(text: Text, choice: random.Random) -> Iterator[Change]:
    """``import torch, selective_scan_cuda``, or two statements on a line."""
    for node, name in imports_of(text):
        yield Change(f"{name} comma", text.edited(text.replace(node, f"import math, {name}")))
        yield Change(f"{name} semicolon", text.edited(text.replace(node, f"pass; import {name}")))


@mutation(*EXTENSION_USERS)
def on_several_lines(text: Text, choice: random.Random) -> Iterator[Change]:
    """Names in parentheses, one a line, with comments."""
    for node in imports_from(text, *CONV):
        inner = "".join(f"        {alias.name},  # compiled\n" for alias in node.names)
        new = f"from {node.module} import (\n{inner}    )"
        yield Change(str(node.module), text.edited(text.replace(node, new)))


@mutation(*EXTENSION_USERS)
def from_the_interface(text: Text, choice: random.Random) -> Iterator[Change]:
    """The convolution comes from the module of its package that defines it."""
    for node in imports_from(text, "causal_conv1d"):
        if [alias.name for alias in node.names] == ["causal_conv1d_fn"]:
            new = "from causal_conv1d.causal_conv1d_interface import causal_conv1d_fn"
            yield Change("fn", text.edited(text.replace(node, new)))


@mutation(*EXTENSION_USERS)
def by_a_dotted_name(text: Text, choice: random.Random) -> Iterator[Change]:
    """``import causal_conv1d.cpp_functions``, and its functions by the whole name."""
    for node in imports_from(text, "causal_conv1d.cpp_functions"):
        for style, before in (
            ("whole", "causal_conv1d.cpp_functions"),
            ("alias", "own_functions"),
        ):
            statement = "import causal_conv1d.cpp_functions"
            edits: list[Edit] = []
            for alias in node.names:
                for each in walk(text.tree):
                    if isinstance(each, ast.Name) and each.id == alias.name:
                        stored = isinstance(each.ctx, ast.Store)
                        new = f"own_{alias.name}" if stored else f"{before}.{alias.name}"
                        edits.append(text.replace(each, new))
            if style == "alias":
                statement += " as own_functions"
            yield Change(style, text.edited(text.replace(node, statement), *edits))


@mutation(*EXTENSION_USERS)
def bound_anew(text: Text, choice: random.Random) -> Iterator[Change]:
    """The module has a second name, which is the one that is used."""
    for node, name in imports_of(text):
        if node in text.tree.body:
            edits = text.renamed(text.tree, name, "own_module")
            code = f"own_module = {name}"
            yield Change(name, text.edited(*edits, text.after(node, code)))


@mutation(*EXTENSION_USERS)
def by_importlib(text: Text, choice: random.Random) -> Iterator[Change]:
    """``importlib.import_module("selective_scan_cuda")``."""
    for node, name in imports_of(text):
        new = f'import importlib; {name} = importlib.import_module("{name}")'
        yield Change(name, text.edited(text.replace(node, new)))


@mutation(*EXTENSION_USERS)
def where_it_is_found(text: Text, choice: random.Random) -> Iterator[Change]:
    """An import under the condition that ``importlib.util.find_spec`` finds the module."""
    for node, name in imports_of(text):
        if node in text.tree.body:
            code = (
                f'import importlib.util\nif importlib.util.find_spec("{name}"):\n'
                f"    import {name}\nelse:\n    {name} = None"
            )
            yield Change(name, text.edited(text.remove(node), text.after(node, code)))


@mutation(*EXTENSION_USERS, refusable="no name says what comes of a star")
def star(text: Text, choice: random.Random) -> Iterator[Change]:
    """``from causal_conv1d.cpp_functions import *``."""
    for node in imports_from(text, *CONV):
        yield Change(
            str(node.module), text.edited(text.replace(node, f"from {node.module} import *"))
        )
