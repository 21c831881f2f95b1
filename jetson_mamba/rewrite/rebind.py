"""The edit that binds functions or methods anew at the end of a module."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from jetson_mamba.rewrite.edit import WAY_PAST
from jetson_mamba.rewrite.functions import known_function

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class Rebind(NamedTuple):
    """After the last line, the name of the function or method ``of`` is bound to ``becomes``.

    That is an expression of the function. Only where the function, or its class, is known and
    takes nothing that is not among ``parameters``. Where it is not known, its own code runs, and
    the op ``unchecked``, if there is one, where that cannot.
    """

    of: str
    becomes: str
    parameters: tuple[str, ...]
    unchecked: str | None = None

    @property
    def turn(self) -> int:
        """When it is made."""
        return WAY_PAST

    @property
    def known_by(self) -> str:
        """The function or class whose digest says whether the way past is taken."""
        return self.of.split(".")[0]

    def concerns(self, source: bytes) -> bool:
        """Whether the function's name stands in the source."""
        return self.of.rpartition(".")[2].encode() in source

    def find(self, draft: Draft) -> None:
        """Bind the function anew, if it is known."""
        if known_function(draft, self.of, self.parameters, self.unchecked, self) is not None:
            draft.append(f"{self.of} = {draft.ours(self.becomes)}", self)
