"""Every change of one place in a module.

There are mutmut's, and four kinds that it does not have. mutmut changes comparisons, constants,
arguments, operators and assignments. Here a check is removed too, a function's body, what it
returns, and an element of a tuple, such as a part of a key.
"""

from __future__ import annotations

import random
import typing
from itertools import zip_longest
from typing import Any, Callable, Iterable, Iterator, NamedTuple, Sequence, Tuple

import libcst as cst
import libcst.matchers as m
from mutmut.mutation.mutators import mutation_operators, operator_assignment

Operator = Callable[[Any], Iterable[cst.CSTNode]]
Place = Tuple[cst.CSTNode, Operator]
PASS = cst.SimpleStatementLine([cst.Pass()])


class Change(NamedTuple):
    """A changed module: the first line that differs, before and after, and the whole new text."""

    line: int
    before: str
    after: str
    text: str


def removed_check(node: cst.If) -> Iterator[cst.If]:
    """``if wrong: raise`` and ``if done: return``, as if the condition never held."""
    if isinstance(node.body, cst.IndentedBlock):
        last = node.body.body[-1]
        leaves = m.SimpleStatementLine([m.Raise() | m.Return() | m.Continue() | m.Break()])
        if m.matches(last, leaves):
            yield node.with_changes(test=cst.Name("False"))


def skipped_body(node: cst.FunctionDef) -> Iterator[cst.FunctionDef]:
    """A function that does nothing, but for its docstring; of an interface none does anything."""
    is_interface = m.matches(node.body.body[-1], m.SimpleStatementLine([m.Expr(m.Ellipsis())]))
    if len(node.body.body) > 1 and not is_interface:
        yield node.with_changes(body=cst.IndentedBlock([PASS]))


def nothing_returned(node: cst.Return) -> Iterator[cst.Return]:
    """``return`` in place of ``return value``."""
    # For most callers nothing is as false as False.
    if node.value is not None and not m.matches(node.value, m.Name("None") | m.Name("False")):
        yield node.with_changes(value=None, whitespace_after_return=cst.SimpleWhitespace(""))


def element_left_out(node: cst.Tuple) -> Iterator[cst.Tuple]:
    """A tuple without one of its elements: a key without a part of what it is about."""
    if len(node.elements) > 1:
        for place in range(len(node.elements)):
            kept = [each for number, each in enumerate(node.elements) if number != place]
            if len(kept) == 1 and isinstance(kept[0], cst.Element):
                kept[0] = kept[0].with_changes(comma=cst.Comma())
            yield node.with_changes(elements=kept)


# What a type checker reads, under a name of its own.
ALIASES = m.Assign(
    value=m.Subscript(value=m.Name(m.MatchIfTrue(lambda name: name in typing.__all__)))
    | m.Call(func=m.Name("TypeVar"))
)
FALSE = m.Assign(value=m.Name("False")) | m.AnnAssign(value=m.Name("False"))
# Any case of it is the same encoding.
ENCODING = m.SimpleString(m.MatchIfTrue(lambda text: text.lower() == '"utf-8"'))

OPERATORS: Sequence[tuple[type, Operator]] = (
    *mutation_operators,
    (cst.If, removed_check),
    (cst.FunctionDef, skipped_body),
    (cst.Return, nothing_returned),
    (cst.Tuple, element_left_out),
)


class _Places(cst.CSTVisitor):
    """Collects what can be changed: not what only a reader or a type checker sees."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Place] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Note the node; False to pass over what is in it."""
        if isinstance(node, (cst.Annotation, cst.Import, cst.ImportFrom, cst.Decorator)):
            return False
        if isinstance(node, cst.If) and m.matches(node.test, m.Name("TYPE_CHECKING")):
            return False
        if m.matches(node, m.SimpleStatementLine([m.Expr(m.SimpleString())])):  # a docstring
            return False
        if m.matches(node, m.Assign([m.AssignTarget(m.Name("__all__") | m.Name("__slots__"))])):
            return False
        if m.matches(node, ALIASES):
            return False
        if isinstance(node, (cst.FormattedString, cst.ConcatenatedString)):  # words for people
            return False
        # Nor is it told from another by the letters that einsum has for its axes.
        if isinstance(node, cst.SimpleString) and (" " in node.value or "->" in node.value):
            return False
        for kind, operator in OPERATORS:
            # For most readers nothing is as false as False.
            says_false = operator is operator_assignment and m.matches(node, FALSE)
            if isinstance(node, kind) and not says_false:
                self.found.append((node, operator))
        return True


def sample(text: str, count: int, generator: random.Random) -> list[Change]:
    """As many changes, drawn evenly from the kinds of change and the places that have them."""
    module = cst.parse_module(text)
    places = _Places()
    module.visit(places)
    kinds: dict[str, list[Place]] = {}
    for place in places.found:
        kinds.setdefault(place[1].__name__, []).append(place)
    for each in kinds.values():
        generator.shuffle(each)
    drawn: list[Change] = []
    names = sorted(kinds)
    while len(drawn) < count and any(kinds.values()):
        name = generator.choice([each for each in names if kinds[each]])
        node, operator = kinds[name].pop()
        changed = [each for each in operator(node) if not m.matches(each, ENCODING)]
        if not changed:
            continue
        other = generator.choice(changed)
        new = module.deep_replace(node, other)
        assert isinstance(new, cst.Module)
        if new.code != text:
            drawn.append(change(text, new.code))
    return drawn


def change(text: str, new: str) -> Change:
    """The change that makes one text of another."""
    pairs = zip_longest(text.splitlines(), new.splitlines(), fillvalue="")
    for line, (before, after) in enumerate(pairs, 1):
        if before != after:
            return Change(line, before.strip(), after.strip(), new)
    raise ValueError("the texts are the same")
