"""What every kind of edit has in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from jetson_mamba.errors import LeftOut

if TYPE_CHECKING:
    from jetson_mamba.rewrite.draft import Draft


class NotTaken(Exception):
    """Why a way past ``what`` is not taken here; everything else is."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(reason)
        self.left_out = LeftOut(what, reason)


class Edit(Protocol):
    """One kind of edit, found and made by itself.

    An edit of the *core* applies to every text that has what it replaces, or refuses the text. A
    *way past* one of upstream's functions raises :class:`NotTaken`, and then has changed nothing.
    Edits with a lower ``turn`` are made first.
    """

    @property
    def turn(self) -> int:
        """When it is made: ``CORE``, ``WAY_PAST`` or ``IMPORTS``."""

    def concerns(self, source: bytes) -> bool:
        """False where a text need not be parsed to see that this changes nothing in it."""

    def find(self, draft: Draft) -> None:
        """Make the edit wherever the text has what it replaces."""


# The calls of extensions and whatever else a text needs to run; what leads past its functions;
# the imports of what was written by those.
CORE, WAY_PAST, IMPORTS = range(3)


class Override(NamedTuple):
    """What changes in one target.

    ``required`` says that a text with nothing to change is one that is not understood.
    """

    target: str
    edits: tuple[Edit, ...]
    required: bool = True

    def concerns(self, source: bytes) -> bool:
        """False where a text need not be parsed to see that nothing in it changes."""
        return self.required or any(edit.concerns(source) for edit in self.edits)


class Applied(NamedTuple):
    """An edit that was made, and the line that it was made on."""

    line: int
    edit: Edit


class Rewritten(NamedTuple):
    """The text of a modified copy and the edits that made it, in the order of their lines."""

    text: str
    applied: tuple[Applied, ...]
    left_out: tuple[LeftOut, ...] = ()
