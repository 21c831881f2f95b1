"""Kind: what else the language has. Calls and definitions in statements that no release uses."""

from __future__ import annotations

import ast
import random
import sys
from typing import Iterator

from tests.mutants.calls import statements_of
from tests.mutants.imports import imports_of
from tests.mutants.operands import extension_calls
from tests.mutants.registry import EXTENSION_USERS, Change, mutation
from tests.mutants.signatures import functions_of
from tests.mutants.structure import after_imports
from tests.mutants.texts import Edit, Function, Text, body_of

# Around the source of a call, which stays what the expression is.
EXPRESSIONS = {
    "walrus": "(own_value := {0})",
    "condition": "({0} if u'a' else None)",
    "lambda": "(lambda: {0})()",
    "or": "({0} or None)",
    "starred": "(*({0},),)[0]",
    "dictionary": "{{'a': {0}}}['a']",
}
# Around the statement that it stands in.
STATEMENTS = {
    "with": "with torch.no_grad() if False else __import__('contextlib').nullcontext():\n{0}",
    "try": "try:\n{0}\nfinally:\n    pass",
    "try else": "try:\n    own_value = 1\nexcept ValueError:\n    raise\nelse:\n{0}",
    "for": "for own_place in range(1):\n{0}",
    "while": "own_count = 0\nwhile not own_count:\n    own_count += 1\n{0}",
    "match": "match 1:\n    case 1:\n{1}\n    case _:\n        pass",
    "if walrus": "if own_value := True:\n{0}",
}
MATCH = sys.version_info >= (3, 10)
TYPE_PARAMETERS = sys.version_info >= (3, 12)


@mutation(*EXTENSION_USERS)
def call_in_an_expression(text: Text, choice: random.Random) -> Iterator[Change]:
    """The call is a part of another expression."""
    for place, call in enumerate(extension_calls(text)):
        for form in choice.sample(list(EXPRESSIONS), 3):
            new = EXPRESSIONS[form].format(text.of(call))
            yield Change(f"{place} {form}", text.edited(text.replace(call, new)))


@mutation(*EXTENSION_USERS)
def call_in_a_statement(text: Text, choice: random.Random) -> Iterator[Change]:
    """The statement of the call stands inside another."""
    forms = [form for form in STATEMENTS if MATCH or form != "match"]
    for place, (statement, _) in enumerate(statements_of(text)):
        for form in choice.sample(forms, 3):
            written = text.of(statement)
            once, twice = (_deeper(text, written, statement, by) for by in (4, 8))
            around = _at(STATEMENTS[form], statement.col_offset)
            new = around.format(once, twice).lstrip()
            yield Change(f"{place} {form}", text.edited(text.replace(statement, new)))


@mutation(*EXTENSION_USERS)
def imported_by_an_expression(text: Text, choice: random.Random) -> Iterator[Change]:
    """The import of an extension in a statement that says more."""
    forms = {
        "semicolon": "import {0}; own_name = {0}",
        "beside": "import math, {0}",
        "two names": "import {0} as own_name, {0}",
        "continued": "import \\\n    {0}",
    }
    for node, name in imports_of(text):
        for form in choice.sample(list(forms), 2):
            new = forms[form].format(name)
            yield Change(f"{name} {form}", text.edited(text.replace(node, new)))


@mutation()
def public_function_in_another_form(text: Text, choice: random.Random) -> Iterator[Change]:
    """A public function has a name more, a partial of itself, or attributes."""
    forms = {
        "partial": "{0} = __import__('functools').partial({0})",
        "alias": "own_alias = {0}",
        "attribute": "{0}.own_note = 'a note'",
        "lambda": "own_plain = {0}\n{0} = lambda *a, **k: own_plain(*a, **k)",
        "starred": "own_plain = {0}\ndef {0}(*a, **k):\n    return own_plain(*a, **k)",
        "object": (
            "class OwnCall:\n    def __init__(self, function):\n        self.function = function\n"
            "    def __call__(self, *a, **k):\n        return self.function(*a, **k)\n"
            "{0} = OwnCall({0})"
        ),
    }
    for name, function, _ in functions_of(text):
        if "." not in name and not function.decorator_list:
            for form in choice.sample(list(forms), 2):
                yield Change(
                    f"{name} {form}", text.edited(text.after(function, forms[form].format(name)))
                )


@mutation()
def defined_by_what_is_true(text: Text, choice: random.Random) -> Iterator[Change]:
    """A public function is defined in one of two branches; that of the other scales."""
    for name, function, _ in functions_of(text):
        if "." in name or function.decorator_list:
            continue
        lines = text.lines_of(function)
        scaled = f"def {name}(*a, **k):\n    raise NotImplementedError"
        for form in ("first", "second", "except"):
            own, other = _indented(lines), _indented(scaled)
            if form == "except":
                code = f"try:\n    import own_missing\n{other}\nexcept ImportError:\n{own}"
            elif form == "first":
                code = f"if hasattr(torch, 'nn'):\n{own}\nelse:\n{other}"
            else:
                code = f"if not hasattr(torch, 'nn'):\n{other}\nelse:\n{own}"
            edits = (text.remove(function), text.before(function, code))
            yield Change(f"{name} {form}", text.edited(*edits))


@mutation()
def parameters_of_types(text: Text, choice: random.Random) -> Iterator[Change]:
    """``type X = …`` in the module, and ``def f[T](…)``: Python 3.12."""
    if not TYPE_PARAMETERS:
        return
    for name, function, _ in functions_of(text):
        yield Change(f"{name} alias", text.edited(after_imports(text, "type OwnAlias = int")))
        yield Change(f"{name} generic", text.edited(_generic(text, function)))


@mutation()
def first_statement(text: Text, choice: random.Random) -> Iterator[Change]:
    """A public function begins with a statement of no effect on what it computes."""
    forms = (
        "import math as own_math",
        "own_value: int = 3",
        "assert (own_value := 1)",
        "def own_inner(a):\n    nonlocal_value = a\n    return nonlocal_value",
        "own_value = f'{len(\"a\")!r:>3}'",
        "own_list = [each for each in range(2) if (last := each) >= 0]",
        "class OwnInner:\n    value = 1",
        "own_first, *own_rest = 1, 2, 3",
        "del_me = 1; del del_me",
    )
    for name, function, _ in functions_of(text):
        if body_of(function):
            for place in sorted(choice.sample(range(len(forms)), 2)):
                yield Change(f"{name} {place}", text.edited(text.at_head(function, forms[place])))


def _generic(text: Text, function: Function) -> Edit:
    start = text.extent(function)[0]
    written = text.source.encode()[start : start + 400].decode(errors="ignore")
    end = start + written.index("(")
    return Edit(end, end, "[OwnT, *OwnTs, **OwnP]")


def _indented(code: str) -> str:
    return "\n".join(f"    {line}" if line else line for line in code.splitlines())


def _at(code: str, columns: int) -> str:
    """The lines of a form, but for the statements in it, so far to the right."""
    return "\n".join(
        line if line.startswith(("{0}", "{1}")) else " " * columns + line
        for line in code.splitlines()
    )


def _deeper(text: Text, written: str, statement: ast.stmt, by: int) -> str:
    first, *others = written.splitlines()
    shift = " " * by
    return "\n".join(
        [" " * statement.col_offset + shift + first, *(shift + each for each in others)]
    )
