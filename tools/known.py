"""Makes the digests of what the ways past replace, from the published texts.

``python -m tools.known`` writes ``vendored_overrides/known.json``: for each target and function,
the digests (``jetson_mamba/rewrite/closure.py`` says what is in one) and the releases that have
each. ``python -m tools.known --check`` makes them once more and compares.

``python -m tools.known --unreleased NAME FOLDER`` writes ``unreleased.json`` beside it: what a
checkout that is no release yet has otherwise, once somebody has read that it computes the same.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Dict, List

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from jetson_mamba.rewrite.closure import closure
from jetson_mamba.rewrite.edit import WAY_PAST
from jetson_mamba.texts import Texts
from tools.releases import MAMBA_SSM, release_path

FOLDER = Path(__file__).resolve().parent.parent / "vendored_overrides"
FILE = FOLDER / "known.json"
UNRELEASED = FOLDER / "unreleased.json"
Digests = Dict[str, Dict[str, Dict[str, List[str]]]]


def digests(texts_of: dict[str, Path] | None = None) -> Digests:
    """The releases by target, function and digest: all, or those of these folders."""
    if texts_of is None:
        texts_of = {version: release_path(version) for version in MAMBA_SSM}
    found: Digests = {}
    for target in TARGETS:
        ways_past = [each for each in copies.override(target).edits if each.turn == WAY_PAST]
        functions = sorted({each.known_by for each in ways_past})  # type: ignore[attr-defined]
        for version, folder in texts_of.items():
            path = folder / f"{target.replace('.', '/')}.py"
            if not path.exists():
                continue
            source = path.read_bytes()
            texts = Texts(target, source.decode(), str(path), source)
            for function in functions:
                if f"def {function}(" not in source.decode() and (
                    f"class {function}(" not in source.decode()
                ):
                    continue
                made_of = closure(texts, function)
                by_digest = found.setdefault(texts.target, {}).setdefault(function, {})
                by_digest.setdefault(made_of.digest, []).append(version)
    return found


def unreleased(name: str, folder: Path) -> Digests:
    """Those of a checkout that no release has."""
    known = digests()
    found: Digests = {}
    for target, functions in digests({name: folder}).items():
        for function, by_digest in functions.items():
            new = {
                digest: names
                for digest, names in by_digest.items()
                if digest not in known.get(target, {}).get(function, {})
            }
            if new:
                found.setdefault(target, {})[function] = new
    return found


def main(arguments: list[str]) -> int:
    """Write a file, or compare it; 1 if it is not what it should be."""
    if arguments[:1] == ["--unreleased"]:
        UNRELEASED.write_text(_written(unreleased(arguments[1], Path(arguments[2]))))
        return 0
    made = _written(digests())
    if arguments != ["--check"]:
        FILE.write_text(made)
        return 0
    if FILE.read_text() == made:
        return 0
    print(f"{FILE}: not what is made afresh; run python -m tools.known", file=sys.stderr)
    return 1


def _written(found: Digests) -> str:
    return json.dumps(found, indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
