"""The edit that replaces calls of an extension's functions."""

from __future__ import annotations

import ast
from bisect import bisect_left
from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.call_forms import Form, matching
from jetson_mamba.errors import Refused
from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.edit import CORE

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft

# Upstream's name for the flag that its wrapper spells as an activation.
SILU_FLAG = "silu_activation"
NEW_FORM = (
    "add the form (docs/call-forms.md of jetson_mamba says how), or report the call and the "
    "causal-conv1d that it is made for to the authors of jetson_mamba"
)


class Call(NamedTuple):
    """Calls of the functions ``of``, in any of ``forms``, become calls of ``becomes``.

    The first ``positional`` arguments stay as they are, the others are passed by name. The flag
    ``silu_activation`` becomes ``activation="silu"`` or ``None``.
    """

    of: tuple[str, ...]
    becomes: str
    forms: tuple[Form, ...]
    positional: int

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    @property
    def functions(self) -> tuple[str, ...]:
        """The functions of extensions that are replaced."""
        return self.of

    def concerns(self, source: bytes) -> bool:
        """Whether the name of one of the functions stands in the source."""
        return any(each.rpartition(".")[2].encode() in source for each in self.of)

    def fits(self, call: ast.Call, origin: str) -> bool:
        """Whether the form of a call can be told from the text: it unpacks nothing.

        Raises :class:`Refused` for a form that is not known.
        """
        return not _unpacks(call) and self._form(call, origin) is not None

    def find(self, draft: Draft) -> None:
        """Edit each call whose function is settled."""
        for call, origin, edit in draft.uses.calls:
            if edit is self:
                self._rewrite(draft, call, self._form(call, origin))
                draft.apply(call.lineno, self)

    def _form(self, call: ast.Call, origin: str) -> Form:
        texts = [isinstance(a, ast.Constant) and isinstance(a.value, str) for a in call.args]
        keywords = [str(keyword.arg) for keyword in call.keywords]
        form = matching(self.forms, texts, keywords, self.positional)
        if form is None:
            raise Refused(
                f"the call of {origin} on line {call.lineno} has {len(call.args)} positional "
                f"arguments{''.join(f', {name}=' for name in keywords)}, a form that is not known",
                NEW_FORM,
            )
        return form

    def _rewrite(self, draft: Draft, node: ast.Call, form: Form) -> None:
        extents = _argument_extents(draft, node)
        function = draft.ours(self.becomes)
        draft.write(node.func, function)
        keywords: list[ast.keyword] = []
        for index, argument in enumerate(node.args[self.positional :], self.positional):
            name = form.parameters[index]
            start, end = extents[index]
            if name == SILU_FLAG:
                keywords.append(_activation(draft, argument, start, end))
            else:
                draft.replace(start, start, f"{name}=")
                keywords.append(nodes.keyword(name, argument))
        for index, keyword in enumerate(node.keywords, len(node.args)):
            start, end = extents[index]
            if keyword.arg == SILU_FLAG:
                keywords.append(_activation(draft, keyword.value, start, end, by_name=True))
            else:
                keywords.append(keyword)
        call: ast.expr = nodes.call(function, list(node.args[: self.positional]), keywords)
        if form.results is not None:
            end = draft.extent(node)[1]
            draft.replace(end, end, f"[:{form.results}]")
            first = nodes.expression(f"_[:{form.results}]")
            assert isinstance(first, ast.Subscript)
            first.value = call
            call = first
        draft.substitute(node, call)


class Rename(NamedTuple):
    """Calls of the function ``of`` become calls of ``becomes`` with the same arguments.

    ``of`` is an extension's, or with ``keyword`` any function, where it is called with that.
    """

    of: str
    becomes: str
    keyword: str | None = None

    @property
    def turn(self) -> int:
        """When it is made."""
        return CORE

    @property
    def functions(self) -> tuple[str, ...]:
        """The function of an extension that is replaced."""
        return () if self.keyword else (self.of,)

    def concerns(self, source: bytes) -> bool:
        """Whether the function's name stands in the source."""
        return self.of.rpartition(".")[2].encode() in source

    def fits(self, call: ast.Call, origin: str) -> bool:
        """Every call does."""
        return True

    def find(self, draft: Draft) -> None:
        """Edit each call whose function is settled, or that has the keyword."""
        for call, _, edit in draft.uses.calls:
            if edit is self:
                draft.replace_expression(call.func, self.becomes)
                draft.apply(call.lineno, self)
        if self.keyword is None or not draft.uses.statements:
            return
        for node in ast.walk(draft.tree):
            if (
                isinstance(node, ast.Call)
                and self.keyword in [keyword.arg for keyword in node.keywords]
                and draft.scopes.origin(node.func) == self.of
            ):
                draft.replace_expression(node.func, self.becomes)
                draft.apply(node.lineno, self)


def _unpacks(call: ast.Call) -> bool:
    return any(isinstance(argument, ast.Starred) for argument in call.args) or any(
        keyword.arg is None for keyword in call.keywords
    )


def _activation(
    draft: Draft, flag: ast.expr, start: int, end: int, by_name: bool = False
) -> ast.keyword:
    """The wrapper's spelling of the flag, in the place of the argument from start to end."""
    value: ast.expr
    if isinstance(flag, ast.Constant) and isinstance(flag.value, bool):
        value = nodes.expression('"silu"' if flag.value else "None")
        draft.write_between(start, end, 'activation="silu"' if flag.value else "activation=None")
    else:
        value = nodes.conditional(flag, nodes.expression('"silu"'), nodes.expression("None"))
        inside = [token.start for token in draft.tokens if start <= token.start < end]
        # After the tokens of `name =`, or at once.
        after_name = inside[2] if by_name else start
        draft.write_between(start, after_name, 'activation="silu" if (')
        draft.replace(end, end, ") else None")
    return nodes.keyword("activation", value)


def _argument_extents(draft: Draft, node: ast.Call) -> list[tuple[int, int]]:
    """Where each argument of a call begins and ends, with its name and parentheses around it."""
    tokens = draft.tokens
    # Between what is called and the arguments: the ends of parentheses around it, then one begins.
    opening = bisect_left(tokens, (draft.extent(node.func)[1],))
    while tokens[opening].string == ")":
        opening += 1
    if tokens[opening].string != "(":  # inside an f-string, which is one token before Python 3.12
        raise Refused(f"the arguments of the call on line {node.lineno} cannot be told apart")
    extents: list[tuple[int, int]] = []
    for argument in (*node.args, *node.keywords):
        value = argument.value if isinstance(argument, ast.keyword) else argument
        start, end = draft.extent(value)
        first = bisect_left(tokens, (start,)) - 1
        after = bisect_left(tokens, (end,))
        while first > opening and tokens[first].string == "(" and tokens[after].string == ")":
            first, after = first - 1, after + 1
        if isinstance(argument, ast.keyword):
            first -= 2
        extents.append((tokens[first + 1].start, tokens[after - 1].end))
    return extents
