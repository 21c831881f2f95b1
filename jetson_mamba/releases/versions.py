"""Compares versions, as far as the table of releases needs it.

The library that does this, packaging, need not be installed where the installer runs.
"""

from __future__ import annotations

import re
from typing import Tuple

Key = Tuple[Tuple[int, ...], int]
CLAUSE = re.compile(r"\s*(===|==|!=|~=|<=|>=|<|>)\s*([0-9][\w.+!-]*?)(\.\*)?\s*")


def key(version: str) -> Key:
    """What versions are ordered by: the numbers of the release, then that of its repair.

    Local labels and marks of pre-releases, as in "2.5.0a0+872d972e41.nv24.08", do not count: to
    what builds on it a vendor's pre-release is the release.
    """
    public = version.partition("+")[0]
    release = re.match(r"\d+(?:\.\d+)*", public)
    numbers = [int(part) for part in release[0].split(".")] if release else [0]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    post = re.search(r"post(\d+)", public)
    return tuple(numbers), int(post[1]) if post else -1


def at_least(version: str, *numbers: int) -> bool:
    """Whether a version is that of these numbers or a later one."""
    return key(version)[0] >= key(".".join(map(str, numbers)))[0]


def allows(specifier: str, version: str) -> bool:
    """Whether a specifier such as ">=2.1,<2.3" allows a version; an empty one allows each."""
    return all(_holds(clause, version) for clause in specifier.split(",") if clause.strip())


def is_specifier(text: str) -> bool:
    """Whether a text is a specifier that :func:`allows` understands."""
    return all(CLAUSE.fullmatch(clause) for clause in text.split(",") if clause.strip())


def _holds(clause: str, version: str) -> bool:
    match = CLAUSE.fullmatch(clause)
    if match is None:
        raise ValueError(f"{clause}: expected a comparison and a version, such as >=2.1")
    comparison, wanted, any_further = match.groups()
    numbers = tuple(map(int, re.findall(r"\d+", wanted.partition("+")[0])))
    if any_further:
        same = _padded(version, len(numbers)) == numbers
        return same if comparison in ("==", "===") else not same
    mine, other = key(version), key(wanted)
    if comparison == "~=":
        release = numbers[:-1] if other[1] >= 0 else numbers  # without the number of a repair
        return mine >= other and _padded(version, len(release) - 1) == release[:-1]
    return {
        "==": mine == other,
        "===": mine == other,
        "!=": mine != other,
        "<=": mine <= other,
        ">=": mine >= other,
        "<": mine < other,
        ">": mine > other and (mine[0] != other[0] or other[1] >= 0),
    }[comparison]


def _padded(version: str, length: int) -> tuple[int, ...]:
    numbers, _ = key(version)
    return (numbers + (0,) * length)[:length]
