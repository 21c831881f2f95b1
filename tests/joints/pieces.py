"""A run of every row in pieces: what was found so far, in a file, for this very state of the code.

An hour may be more than one has at a time. A run that was ended goes on where it was. A row is run
anew where anything has changed that it could depend on: the package, what all joints share, the
file that its joint stands in, Python or a library.
"""

from __future__ import annotations

import hashlib
import json
import platform
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.joints.declared import AREAS, Joint
from tests.joints.verdicts import Judged, Verdict
from tests.joints.workers import RELEASE, REPOSITORY

ROOMS = ("jetson_mamba", "vendored_overrides", "tests/joints", "tests/references")
PACKAGES = ("torch", "transformers", "triton", "einops", "onnx", "onnxruntime", "accelerate")
NO_PART = ("__main__.py", "page.py", "pieces.py", "test_joints.py", "test_verdicts.py")


class Pieces:
    """The verdicts in a file, one a line, each with the state of the code that it is of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def found(self, joints: dict[str, Joint]) -> dict[tuple[str, str], Judged]:
        """Those of the code and libraries that are here."""
        found = {}
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        for line in lines:
            try:
                of, joint, subject, verdict, why = json.loads(line)
            except ValueError:  # The run was ended while it wrote this.
                continue
            if joint in joints and of == _state(joints[joint].area):
                found[joint, subject] = Judged(Verdict[verdict], why)
        return found

    def add(self, joint: Joint, subject: str, judged: Judged) -> None:
        """Keep one more."""
        line = [_state(joint.area), joint.name, subject, judged.verdict.name, judged.why]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


@lru_cache(maxsize=None)
def _state(area: str) -> str:
    """A digest of the files, Python and libraries that the rows of an area depend on."""
    digest = hashlib.sha256(f"{platform.python_version()} {RELEASE}".encode())
    for name in PACKAGES:
        try:
            digest.update(f"{name} {version(name)}".encode())
        except PackageNotFoundError:
            digest.update(name.encode())
    others = {*NO_PART, *(f"{each}.py" for each in AREAS if each != area)}
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*")):
            if path.suffix not in (".py", ".cu", ".cuh", ".json") or "copies" in path.parts:
                continue
            if room != "tests/joints" or path.name not in others:
                digest.update(str(path.relative_to(REPOSITORY)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()
