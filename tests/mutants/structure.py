"""Kind: where things stand. Helpers moved, layers and decorators added, classes copied."""

from __future__ import annotations

import ast
import random
from typing import Iterator

from tests.mutants.registry import EXTENSION_USERS, Change, mutation
from tests.mutants.signatures import SCALED, applies, functions_of
from tests.mutants.texts import Edit, Text, body_of, unparse, walk

SCALING_DECORATOR = f'''{SCALED}

def own_decorator(function):
    """Scales what a function returns."""
    import functools

    @functools.wraps(function)
    def wrapper(*arguments, **options):
        return own_scaled(function(*arguments, **options), 1.5)

    return wrapper
'''
PLAIN_DECORATOR = '''def own_decorator(function):
    """Leaves a function as it is."""
    import functools

    @functools.wraps(function)
    def wrapper(*arguments, **options):
        return function(*arguments, **options)

    return wrapper
'''


def after_imports(text: Text, code: str) -> Edit:
    """``code`` before the first function or class of a module."""
    first = next(
        each for each in text.tree.body if isinstance(each, (ast.FunctionDef, ast.ClassDef))
    )
    return text.before(first, f"{code}\n\n")


@mutation()
def layer_around_apply(text: Text, choice: random.Random) -> Iterator[Change]:
    """A function stands between the public one and ``.apply``, and scales or does not."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            called = text.of(call.func)
            for times in (None, 1.5):
                code = f"def own_layer(*arguments):\n    return {called}(*arguments)"
                if times:
                    code = (
                        f"{SCALED}\n\ndef own_layer(*arguments):\n"
                        f"    return own_scaled({called}(*arguments), {times})"
                    )
                edits = (text.replace(call.func, "own_layer"), text.at_end(code))
                yield Change(f"{name} {times}", text.edited(*edits))


@mutation()
def apply_has_a_name(text: Text, choice: random.Random) -> Iterator[Change]:
    """``.apply`` is bound to a name, of the module or of the function."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            called = text.of(call.func)
            replaced = text.replace(call.func, "own_apply")
            yield Change(
                f"{name} function",
                text.edited(replaced, text.at_head(function, f"own_apply = {called}")),
            )
            yield Change(
                f"{name} module",
                text.edited(replaced, text.before(function, f"own_apply = {called}\n\n")),
            )


@mutation()
def decorated(text: Text, choice: random.Random) -> Iterator[Change]:
    """A public function has a decorator, which scales or does not."""
    for name, function, _ in functions_of(text):
        if name == "decode" or name.endswith("step"):
            continue
        for style, decorator in (("plain", PLAIN_DECORATOR), ("scaling", SCALING_DECORATOR)):
            edits = (after_imports(text, decorator), text.before(function, "@own_decorator"))
            yield Change(f"{name} {style}", text.edited(*edits))


@mutation()
def subclassed(text: Text, choice: random.Random) -> Iterator[Change]:
    """The public function applies a subclass that scales, or does not."""
    for name, function, _ in functions_of(text):
        for call in applies(function):
            owner = unparse(call.func).rpartition(".")[0]
            for times in (1.0, 1.5):
                code = (
                    f"class OwnFn({owner}):\n    @staticmethod\n"
                    "    def forward(ctx, first, *rest):\n"
                    f"        return {owner}.forward(ctx, first * {times}, *rest)\n\n"
                )
                edits = (
                    text.before(function, code),
                    text.replace(call.func, "OwnFn.apply"),
                )
                yield Change(f"{name} {times}", text.edited(*edits))


@mutation()
def class_renamed(text: Text, choice: random.Random) -> Iterator[Change]:
    """The autograd function has another name, everywhere."""
    for owner in text.autograd_classes():
        start = text.extent(owner)[0] + len("class ")
        edit = Edit(start, start + len(owner.name), f"Own{owner.name}")
        edits = text.renamed(text.tree, owner.name, f"Own{owner.name}")
        yield Change(owner.name, text.edited(edit, *edits))


@mutation()
def copied_class(text: Text, choice: random.Random) -> Iterator[Change]:
    """A class more that is a copy of another, and scales or does not, as forks have them."""
    for owner in text.autograd_classes():
        source = text.lines_of(owner).replace(f"class {owner.name}", "class OwnCopyFn", 1)
        yield Change(f"{owner.name} same", text.edited(text.at_end(source)))
        forward = text.find(f"{owner.name}.forward")
        if forward is not None:
            first = forward.args.args[1].arg
            copy = Text(text.release, text.path, source)
            head = copy.at_head(copy.function("OwnCopyFn.forward"), f"{first} = {first} * 1.5")
            yield Change(f"{owner.name} scaling", text.edited(text.at_end(copy.edited(head))))


@mutation()
def helper_moved(text: Text, choice: random.Random) -> Iterator[Change]:
    """A helper of the module stands in another one, as it was or scaling."""
    for name, function in text.functions():
        if "." in name or name in text.public or not used_in(text, name):
            continue
        source = text.lines_of(function)
        names = {each.id for each in walk(function) if isinstance(each, ast.Name)}
        if function.decorator_list or names & module_names(text):
            continue
        header = "import math\n\nimport torch\nimport torch.nn.functional as F\n"
        header += "from einops import rearrange, repeat\n\n\n"
        statement = f"from own_helpers import {name}\n\n"
        edits = (text.remove(function), text.before(function, statement))
        yield Change(f"{name} same", text.edited(*edits), {"/own_helpers.py": header + source})


@mutation(refusable="the calls stand in another module")
def class_moved(text: Text, choice: random.Random) -> Iterator[Change]:
    """An autograd function that calls an extension stands in a module of its own."""
    if text.path not in EXTENSION_USERS:
        return
    for owner in text.autograd_classes():
        names = {each.id for each in walk(owner) if isinstance(each, ast.Name)}
        if names & module_names(text):
            continue
        until = next(
            each for each in text.tree.body if isinstance(each, (ast.FunctionDef, ast.ClassDef))
        )
        header = text.source[: text.source.index(text.lines_of(until))]
        moved = {"ops/own_autograd.py": header + text.lines_of(owner)}
        statement = f"from mamba_ssm.ops.own_autograd import {owner.name}\n\n"
        edits = (text.remove(owner), text.before(owner, statement))
        yield Change(owner.name, text.edited(*edits), moved)


@mutation()
def under_a_condition(text: Text, choice: random.Random) -> Iterator[Change]:
    """A public function is defined in a branch."""
    for name, function, _ in functions_of(text):
        if "." in name:
            continue
        lines = text.lines_of(function).splitlines()
        inner = "\n".join(f"    {line}" if line else line for line in lines)
        edits = (text.remove(function), text.before(function, f"if True:\n{inner}"))
        yield Change(name, text.edited(*edits))


@mutation()
def order_of_definitions(text: Text, choice: random.Random) -> Iterator[Change]:
    """A public function stands before the class that it applies."""
    for name, function, _ in functions_of(text):
        if "." not in name:
            source = text.lines_of(function)
            edits = (text.remove(function), after_imports(text, source))
            if after_imports(text, "").start < edits[0].start:
                yield Change(name, text.edited(*edits))


@mutation()
def forward_in_two(text: Text, choice: random.Random) -> Iterator[Change]:
    """The forward pass of an autograd function calls another method that does its work."""
    for owner in text.autograd_classes():
        forward = text.find(f"{owner.name}.forward")
        if forward is None or not body_of(forward):
            continue
        start = text.extent(forward)[0] + len("def ")
        name = Edit(start, start + len("forward"), "own_forward")
        code = (
            "@staticmethod\ndef forward(ctx, *arguments):\n"
            f"    return {owner.name}.own_forward(ctx, *arguments)\n"
        )
        yield Change(owner.name, text.edited(text.before(forward, code), name))


@mutation()
def public_function_calls_another(text: Text, choice: random.Random) -> Iterator[Change]:
    """The work of a public function is done by one of another name."""
    for name, function, known in functions_of(text):
        if "." in name or name == "decode":
            continue
        start = text.extent(function)[0] + len("def ")
        renamed = Edit(start, start + len(name), f"own_{name}")
        listed = ", ".join(each.written for each in known)
        given = ", ".join(each.name for each in known)
        code = f"def {name}({listed}):\n    return own_{name}({given})"
        if not function.decorator_list:
            yield Change(name, text.edited(renamed, text.at_end(code)))


def used_in(text: Text, name: str) -> bool:
    return any(isinstance(node, ast.Name) and node.id == name for node in walk(text.tree))


def module_names(text: Text) -> set[str]:
    """The functions, classes and constants that a module defines itself."""
    names = {
        node.name for node in text.tree.body if isinstance(node, (ast.FunctionDef, ast.ClassDef))
    }
    for node in text.tree.body:
        if isinstance(node, ast.Assign):
            names |= {each.id for each in walk(node) if isinstance(each, ast.Name)}
    return names
