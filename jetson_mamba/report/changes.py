"""What the modified copies change in the mamba_ssm that is installed, as unified diffs.

Neither torch nor mamba_ssm is imported: the source is read where it lies.
"""

from __future__ import annotations

import difflib
import io
import os
import tokenize
from dataclasses import dataclass

from jetson_mamba.errors import CannotRun
from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.report import installed
from jetson_mamba.report.status import LeftOut
from jetson_mamba.rewrite import Refused


@dataclass(frozen=True)
class Change:
    """What becomes of one target: ``diff`` is empty where nothing changes, for ``reason``.

    ``left_out`` are the parts of the override that are not taken here, each with the reason.
    """

    target: str
    source: str
    diff: str
    reason: str | None
    refused: bool
    left_out: tuple[LeftOut, ...] = ()


def targets_named(name: str | None) -> tuple[str, ...]:
    """The targets that a name means: all without one, else one by its full name or its end."""
    if name is None:
        return TARGETS
    found = tuple(target for target in TARGETS if f".{target}".endswith(f".{name}"))
    if not found:
        raise CannotRun(f"{name}: expected one of {', '.join(TARGETS)}, or how one of them ends")
    return found


def changes(name: str | None = None) -> tuple[Change, ...]:
    """What changes in each target that the installed mamba_ssm has, or in the one named."""
    wanted = targets_named(name)
    folders = installed.folders("mamba_ssm", installed.search_path())
    if not folders:
        raise CannotRun("mamba_ssm is not installed; install it: jetson-mamba install")
    present = {target: installed.module_file(folders[0], target) for target in wanted}
    found = [_change(target, path) for target, path in present.items() if os.path.isfile(path)]
    if not found:
        raise CannotRun(f"{folders[0]} has no {', '.join(present)}")
    return tuple(found)


def _change(target: str, path: str) -> Change:
    with open(path, "rb") as file:
        source = file.read()
    try:
        _, rewritten = copies.examine(target, source, path)
    except Refused as refusal:
        return Change(target, path, "", str(refusal), True)
    left_out = tuple(LeftOut(*each) for each in rewritten.left_out)
    made = copies.make(target, source, path)
    if made is None:
        return Change(target, path, "", "it needs no change", False, left_out)
    relative = target.replace(".", "/") + ".py"
    lines = difflib.unified_diff(
        _lines(source), _lines(made), f"installed/{relative}", f"modified/{relative}"
    )
    return Change(target, path, "".join(lines), None, False, left_out)


def _lines(data: bytes) -> list[str]:
    """The lines of a source file, each with one line end."""
    encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
    return [line.rstrip("\n") + "\n" for line in io.TextIOWrapper(io.BytesIO(data), encoding)]
