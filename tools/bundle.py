"""Makes the bundled copies of all published releases, or checks that they are what they should be.

``python -m tools.bundle`` writes them to ``vendored_overrides/copies``, from where a wheel that
is built afterwards takes them; git never does. ``python -m tools.bundle --check`` makes each of
them once more and compares.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Iterator

from jetson_mamba import cache, kernel_packages
from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies
from tools.releases import MAMBA_SSM, release_path

FOLDER = Path(__file__).resolve().parent.parent / "vendored_overrides" / "copies"
PROVENANCE = "PROVENANCE.json"
LICENCE = "LICENSE.mamba-ssm"


def contents() -> dict[str, bytes]:
    """Every file of the bundle by its name: the copies, upstream's licence, the provenance."""
    found: dict[str, bytes] = {}
    provenance: dict[str, dict[str, object]] = {}
    for version in MAMBA_SSM:
        for target, path, without in _made(release_path(version)):
            source = path.read_bytes()
            name = copies.file_name(target, source, str(path), without=without)
            if name not in found:  # else another release has the same texts
                copy = copies.make(target, source, str(path), without=without)
                if copy is None:
                    continue
                found[name] = cache.seal(name, copy)
            entry = provenance.setdefault(
                name,
                {
                    "target": target,
                    "releases": [],
                    "source sha256": hashlib.sha256(source).hexdigest(),
                    "copy sha256": hashlib.sha256(found[name]).hexdigest(),
                },
            )
            releases = entry["releases"]
            assert isinstance(releases, list)
            releases.append(f"mamba-ssm {version}")
    found[LICENCE] = (release_path(MAMBA_SSM[-1]) / "LICENSE").read_bytes()
    found[PROVENANCE] = (json.dumps(provenance, indent=1) + "\n").encode()
    return found


def _made(release: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """What copies are made of: a module, where it lies, and what it then does not import.

    What Mamba-3's kernels are written in is mostly not there, so that is told of both.
    """
    for path in sorted((release / "mamba_ssm").rglob("*.py")):
        target = ".".join(path.relative_to(release).with_suffix("").parts)
        languages = kernel_packages.languages(path.read_bytes())
        if target in TARGETS:
            yield target, path, []
        if languages:
            yield target, path, languages


def write(folder: Path) -> int:
    """Write the bundle, and remove what no longer belongs to it."""
    wanted = contents()
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        if path.is_file() and path.name not in wanted:
            path.unlink()
    for name, data in wanted.items():
        (folder / name).write_bytes(data)
    print(f"{folder}: {sum(name.endswith('.py') for name in wanted)} copies")
    return 0


def check(folder: Path) -> int:
    """Compare the bundle with one made afresh; 1 if they differ."""
    wanted = contents()
    present = {path.name: path.read_bytes() for path in folder.glob("*") if path.is_file()}
    wrong = [name for name in sorted({*present, *wanted}) if present.get(name) != wanted.get(name)]
    for name in wrong:
        print(f"{name}: not what is made afresh", file=sys.stderr)
    print(f"{len(wanted)} files, {len(wrong)} differ")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit((check if sys.argv[1:] == ["--check"] else write)(FOLDER))
