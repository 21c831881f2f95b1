"""What a command, the hook or a backend says where it cannot do its work."""

from __future__ import annotations

from typing import NamedTuple


class CannotRun(Exception):
    """One line for the user: what was found, what was expected, what to do."""


class Refused(Exception):
    """The text is not understood, and why; upstream's own module is used as it is.

    ``advice`` is what to do about it, where more is known than that it can be reported.
    """

    def __init__(self, reason: str, advice: str | None = None) -> None:
        super().__init__(reason)
        self.advice = advice


class Unavailable(Exception):
    """A backend does not apply here: not installed, or not made for this device or dtype."""


class LeftOut(NamedTuple):
    """What stays in a copy as the text has it, and why."""

    what: str
    reason: str
