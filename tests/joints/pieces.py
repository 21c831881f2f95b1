"""A run of every row in pieces: what was found so far, in a file, for this very state of the code.

An hour may be more than one has at a time. A run that was ended goes on where it was. A row is run
anew where anything has changed that it could depend on: the package, what all joints share, its
joint's function and what that uses of its file, Python or a library.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from copy import copy
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.joints.declared import AREAS, Joint
from tests.joints.verdicts import Judged, Verdict
from tests.joints.workers import RELEASE, REPOSITORY

ROOMS = ("jetson_mamba", "vendored_overrides", "tests/joints", "tests/references")
PACKAGES = ("torch", "transformers", "triton", "einops", "onnx", "onnxruntime", "accelerate")
NO_PART = ("__main__.py", "page.py", "pieces.py", "test_joints.py", "test_verdicts.py")
FOLDER = REPOSITORY / "tests" / "joints"


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
            if joint in joints and of == _state(joints[joint]):
                found[joint, subject] = Judged(Verdict[verdict], why)
        return found

    def add(self, joint: Joint, subject: str, judged: Judged) -> None:
        """Keep one more."""
        line = [_state(joint), joint.name, subject, judged.verdict.name, judged.why]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def _state(joint: Joint) -> str:
    return hashlib.sha256((_shared() + _source(joint)).encode()).hexdigest()


@lru_cache(maxsize=None)
def _shared() -> str:
    """A digest of Python, the libraries and the files that all rows depend on."""
    digest = hashlib.sha256(f"{platform.python_version()} {RELEASE}".encode())
    for name in PACKAGES:
        try:
            digest.update(f"{name} {version(name)}".encode())
        except PackageNotFoundError:
            digest.update(name.encode())
    areas = {*NO_PART, *(f"{area}.py" for area in AREAS)}
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*")):
            if path.suffix not in (".py", ".cu", ".cuh", ".json") or "copies" in path.parts:
                continue
            # Of an area's file each joint has its part.
            if path.parent != FOLDER or path.name not in areas:
                digest.update(str(path.relative_to(REPOSITORY)).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _source(joint: Joint) -> str:
    """The statements that its function is made of: its own, and those of every name it uses."""
    named = _statements(joint.area)
    wanted, found = [joint.run.__name__], set()
    while wanted:
        name = wanted.pop()
        if name not in found and name in named:
            found.add(name)
            wanted += [node.id for node in ast.walk(named[name]) if isinstance(node, ast.Name)]
    return "\n".join(ast.dump(named[name]) for name in sorted(found))


@lru_cache(maxsize=None)
def _statements(area: str) -> dict[str, ast.stmt]:
    """The statements of an area's file, by the names that they bind."""
    named: dict[str, ast.stmt] = {}
    for statement in ast.parse((FOLDER / f"{area}.py").read_text(encoding="utf-8")).body:
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            named[statement.name] = statement
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for each in statement.names:
                alone = copy(statement)
                alone.names = [each]
                named[each.asname or each.name.partition(".")[0]] = alone
        else:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    named[node.id] = statement
    return named
