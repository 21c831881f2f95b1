"""Turns the source of a target into its modified copy.

An override is a list of edits. Those of its *core* serve every text that has what they replace.
*Ways past* upstream's functions are each taken only where the function is known to be what the op
computes. When all edits are made, the copy is compared with its source: any other difference
refuses it.
"""

from __future__ import annotations

import tokenize

from jetson_mamba.call_forms import Form
from jetson_mamba.errors import LeftOut, Refused
from jetson_mamba.rewrite import nodes
from jetson_mamba.rewrite.absent import Absent
from jetson_mamba.rewrite.calls import Call, Rename
from jetson_mamba.rewrite.dispatch import Dispatch
from jetson_mamba.rewrite.draft import Draft
from jetson_mamba.rewrite.edit import Applied, Edit, NotTaken, Override, Rewritten
from jetson_mamba.rewrite.expressions import Expression
from jetson_mamba.rewrite.extensions import Import
from jetson_mamba.rewrite.import_beside import ImportBeside
from jetson_mamba.rewrite.import_from import ImportFrom
from jetson_mamba.rewrite.import_later import ImportLater
from jetson_mamba.rewrite.known import Known
from jetson_mamba.rewrite.placeholder import Placeholder
from jetson_mamba.rewrite.proof import prove
from jetson_mamba.rewrite.rebind import Rebind
from jetson_mamba.texts import Texts

__all__ = [
    "Absent",
    "Applied",
    "Call",
    "Dispatch",
    "Edit",
    "Expression",
    "Form",
    "Import",
    "ImportBeside",
    "ImportFrom",
    "ImportLater",
    "LeftOut",
    "Override",
    "Placeholder",
    "Rebind",
    "Refused",
    "Rename",
    "Rewritten",
    "Texts",
    "rewrite",
]


def rewrite(text: str, override: Override, texts: Texts | None = None) -> Rewritten:
    """The modified copy of ``text``.

    ``texts`` are the modules beside it, by which its functions are known; without them only those
    are that need no other module.

    Raises :class:`Refused` where the text does not parse, calls an extension in a form that no
    edit declares, has nothing that the override replaces, or differs elsewhere after the edits.
    """
    with nodes.many():
        return _rewritten(text, override, texts or Texts(override.target, text))


def _rewritten(text: str, override: Override, texts: Texts) -> Rewritten:
    try:
        draft = Draft(text, override.edits, Known(texts))
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise Refused(
            f"it does not parse on this Python ({error})",
            "use a mamba_ssm that supports this Python, or another Python",
        ) from error
    for edit in sorted(override.edits, key=lambda each: each.turn):
        try:
            edit.find(draft)
        except NotTaken as reason:
            draft.leave(*reason.left_out)
    draft.finish()
    applied = tuple(sorted(draft.applied, key=lambda each: each.line))
    if override.required and not applied:
        left = "".join(f"; {each.what} stays: {each.reason}" for each in draft.left_out)
        raise Refused(f"nothing in it is what this override replaces{left}")
    result = draft.result()
    prove(draft, result)
    return Rewritten(result, applied, tuple(draft.left_out))
