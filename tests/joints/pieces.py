"""A run of every row in pieces: what was found so far, in a file, for this very state of the code.

An hour may be more than one has at a time. A run that was ended goes on where it was. A row is run
anew where anything has changed that it could depend on: the package, what all joints share, its
joint's function and what that uses of its file, Python or a library. Each line says when and with
which libraries it was run, so that a page can be made of runs on several machines.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
from copy import copy
from datetime import date
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Iterable, Iterator, NamedTuple

from tests.joints.declared import AREAS, Joint
from tests.joints.verdicts import Judged, Verdict
from tests.joints.workers import RELEASE, REPOSITORY

ROOMS = ("jetson_mamba", "vendored_overrides", "tests/joints", "tests/references")
PACKAGES = ("torch", "transformers", "triton", "einops", "onnx", "onnxruntime", "accelerate")
NAMED = ("torch", "transformers", "onnx")
NO_PART = ("__main__.py", "page.py", "pieces.py", "test_joints.py", "test_verdicts.py")
FOLDER = REPOSITORY / "tests" / "joints"


class Line(NamedTuple):
    """A verdict as it is kept, and what it is of."""

    state: str
    joint: str
    subject: str
    verdict: str
    why: str
    run: str


class Pieces:
    """The verdicts in a file, one a line, each with the state of the code that it is of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def found(self, joints: dict[str, Joint]) -> dict[tuple[str, str], Judged]:
        """Those of the code and libraries that are here."""
        return {
            (line.joint, line.subject): Judged(Verdict[line.verdict], line.why)
            for line in _lines(self._path)
            if line.joint in joints and line.state == _state(joints[line.joint])
        }

    def add(self, joint: Joint, subject: str, judged: Judged) -> None:
        """Keep one more."""
        line = Line(
            _state(joint), joint.name, subject, judged.verdict.name, judged.why, described()
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def collected(
    paths: Iterable[Path], joints: dict[str, Joint]
) -> tuple[dict[tuple[str, str], Judged], dict[tuple[str, str], str]]:
    """The last verdict of each row in several files, and what each was run with.

    Of whatever state of the code: a row is what it was on its day.
    """
    found, runs = {}, {}
    for path in paths:
        for line in _lines(path):
            if line.joint in joints:
                found[line.joint, line.subject] = Judged(Verdict[line.verdict], line.why)
                runs[line.joint, line.subject] = line.run
    return found, runs


def described() -> str:
    """The day, Python and the libraries of a run."""
    versions = [f"Python {platform.python_version()}"]
    for name in NAMED:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    return f"{date.today()}: {', '.join(versions)}"


def _lines(path: Path) -> Iterator[Line]:
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            yield Line(*json.loads(line))
        except (ValueError, TypeError):  # The run was ended while it wrote this.
            continue


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
