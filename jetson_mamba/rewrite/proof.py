"""Proves that a copy differs from its source in the declared edits alone."""

from __future__ import annotations

import ast

from jetson_mamba.errors import Refused
from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.draft import Draft
from jetson_mamba.rewrite.uses import imports_of


def prove(draft: Draft, result: str) -> None:
    """Raises :class:`Refused` unless the result is the source with the declared edits.

    The result is parsed again and must equal the tree of the source in which the same edits were
    made a second time, on the nodes; every node that was there before must stand on its line; and
    no import of an extension may be left over that is not meant to stay.
    """
    try:
        copy = ast.parse(result)
    except (SyntaxError, ValueError) as error:
        raise Refused(f"after the edits it does not parse ({error})") from error
    expected = draft.expected()
    if not nodes.same(expected, copy):
        raise Refused("after the edits it differs elsewhere")
    for before, after in zip(ast.walk(expected), ast.walk(copy)):
        if getattr(before, "lineno", None) not in (None, getattr(after, "lineno", None)):
            raise Refused(f"after the edits line {getattr(before, 'lineno', 0)} has moved")
    modules = set(draft.uses.modules)
    left_over = set(imports_of(copy, modules)) - draft.left_imports
    if left_over:
        names = ", ".join(sorted({module for _, module in left_over}))
        raise Refused(f"after the edits it still imports {names}")
