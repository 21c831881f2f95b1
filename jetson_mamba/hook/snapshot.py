"""A snapshot of the hook of this process, for reports."""

from __future__ import annotations

import sys
from typing import Mapping, NamedTuple

import jetson_mamba
from jetson_mamba.finder import of_this_process


class Hook(NamedTuple):
    """The hook: ``mode`` is what it was activated with, ``activated_by`` None where it is not.

    ``before`` are the finders that are asked for a module before it is. ``outcomes`` says what
    became of each target when it was last imported: see :class:`~jetson_mamba.finder.Finder`.
    """

    active: bool
    activated_by: str | None
    mode: str
    before: tuple[object, ...]
    outcomes: Mapping[str, object]


def hook() -> Hook:
    """The hook as it is now; what happens to it later does not show in this."""
    finder = of_this_process()
    active = jetson_mamba.is_active()
    return Hook(
        active,
        finder.activated_by if active else None,
        finder.mode,
        tuple(sys.meta_path[: sys.meta_path.index(finder)]) if active else (),
        dict(finder.outcomes),
    )
