"""Kind: how it is written. Nothing of it means anything, so all of it is served as upstream's."""

from __future__ import annotations

import ast
import random
import re
from typing import Iterator

from tests.mutants.registry import Change, mutation
from tests.mutants.signatures import functions_of
from tests.mutants.texts import Text, body_of, unparse, walk


@mutation()
def formatted_anew(text: Text, choice: random.Random) -> Iterator[Change]:
    """As a formatter of code writes it, without a comment."""
    yield Change("", unparse(text.tree) + "\n")


@mutation()
def line_ends(text: Text, choice: random.Random) -> Iterator[Change]:
    """Windows' line ends, or none after the last line."""
    yield Change("crlf", text.source.replace("\n", "\r\n"))
    yield Change("last", text.source.rstrip("\n"))


@mutation()
def beginning(text: Text, choice: random.Random) -> Iterator[Change]:
    """A byte order mark, an encoding, an interpreter, a future before the first line."""
    yield Change("mark", "\ufeff" + text.source)
    yield Change("encoding", "# -*- coding: utf-8 -*-\n" + text.source)
    yield Change("interpreter", "#!/usr/bin/env python\n# 中文\n" + text.source)
    if not text.source.lstrip().startswith('"""') and ast.get_docstring(text.tree) is None:
        yield Change("future", "from __future__ import annotations\n" + text.source)


@mutation()
def comments(text: Text, choice: random.Random) -> Iterator[Change]:
    """Comments and empty lines in every function, also in another script."""
    edits = [
        text.at_head(function, "# état, 状態\n")
        for _, function in text.functions()
        if not function.decorator_list or "jit" not in unparse(function.decorator_list[-1])
    ]
    yield Change("", text.edited(*edits))


@mutation()
def docstring(text: Text, choice: random.Random) -> Iterator[Change]:
    """A public function says something else of itself."""
    for name, function, _ in functions_of(text):
        if ast.get_docstring(function) is None:
            yield Change(name, text.edited(text.at_head(function, '"""What it does."""')))
        elif body_of(function):
            yield Change(name, text.edited(text.replace(function.body[0], '"""What it does."""')))


@mutation()
def local_variable_renamed(text: Text, choice: random.Random) -> Iterator[Change]:
    """A variable of a function has another name."""
    for owner in text.autograd_classes():
        for method in ("forward", "backward"):
            function = text.find(f"{owner.name}.{method}")
            if function is None:
                continue
            taken = {each.arg for each in function.args.args}
            names = sorted(
                {
                    node.id
                    for node in walk(function)
                    if isinstance(node, ast.Name)
                    and isinstance(node.ctx, ast.Store)
                    and node.id not in taken
                }
            )
            for name in choice.sample(names, min(1, len(names))):
                edits = text.renamed(function, name, f"own_{name}")
                yield Change(f"{owner.name}.{method} {name}", text.edited(*edits))


@mutation()
def version_written(text: Text, choice: random.Random) -> Iterator[Change]:
    """A constant and an unused function more at the end of the module."""
    code = '__own_version__ = "1.0"\n\n\ndef own_unused():\n    return __own_version__'
    yield Change("", text.edited(text.at_end(code)))


@mutation()
def spaces_at_the_ends(text: Text, choice: random.Random) -> Iterator[Change]:
    """Spaces after every statement that ends a line with a closing parenthesis."""
    yield Change("", re.sub(r"\)$", ")  ", text.source, flags=re.MULTILINE))
