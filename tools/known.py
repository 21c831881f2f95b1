"""Makes the digests of what the ways past replace, from the published texts.

``python -m tools.known`` writes ``vendored_overrides/known.json``: for each target and function,
the digests (``jetson_mamba/rewrite/closure.py`` says what is in one) and the releases that have
each. ``python -m tools.known --check`` makes them once more and compares.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jetson_mamba.hook import copies
from jetson_mamba.hook.finder import TARGETS
from jetson_mamba.rewrite.closure import closure
from jetson_mamba.rewrite.edit import WAY_PAST
from jetson_mamba.texts import Texts
from tools.releases import MAMBA_SSM, release_path

FILE = Path(__file__).resolve().parent.parent / "vendored_overrides" / "known.json"


def digests() -> dict[str, dict[str, dict[str, list[str]]]]:
    """The releases by target, function and digest."""
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for target in TARGETS:
        ways_past = [each for each in copies.override(target).edits if each.turn == WAY_PAST]
        functions = sorted({each.known_by for each in ways_past})  # type: ignore[attr-defined]
        for version in MAMBA_SSM:
            path = release_path(version) / f"{target.replace('.', '/')}.py"
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


def main(check: bool) -> int:
    """Write the file, or compare it; 1 if it is not what it should be."""
    made = json.dumps(digests(), indent=1, sort_keys=True) + "\n"
    if not check:
        FILE.write_text(made)
        return 0
    if FILE.read_text() == made:
        return 0
    print(f"{FILE}: not what is made afresh; run python -m tools.known", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] == ["--check"]))
