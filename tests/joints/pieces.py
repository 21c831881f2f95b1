"""A run of every row in pieces: what was found so far, in a file, for this very state of the code.

An hour may be more than one has at a time. A run that was ended goes on where it was. A row is run
anew where anything has changed that it could depend on: the package, what all joints share, its
joint's function and what that uses of its file, Python or a library. Each line says when, on which
code and with which libraries it was run, so that a page can be made of runs on several machines.
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import subprocess
from copy import copy
from datetime import date
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Iterable, Iterator, NamedTuple

from tests.joints.declared import AREAS, Joint
from tests.joints.verdicts import Judged, Verdict
from tests.joints.workers import RELEASE, REPOSITORY

ROOMS = ("jetson_mamba", "vendored_overrides", "tests/joints", "tests/references")
# What no row runs: these rooms, and kernels for a GPU.
NO_ROOMS = {f"jetson_mamba/{room}" for room in ("cli", "demo", "frozen", "installing", "report")}
NO_PART = ("__main__.py", "page.py", "pieces.py", "record.py")
PACKAGES = ("torch", "transformers", "triton", "einops", "onnx", "onnxruntime", "accelerate")
# What joints of single libraries need, which need not be there.
OPTIONAL = ("peft", "torchao", "captum")
FOLDER = REPOSITORY / "tests" / "joints"


class Run(NamedTuple):
    """When rows were run, on which code, with what."""

    day: str
    code: str
    commit: str
    libraries: str


class Line(NamedTuple):
    """A verdict as it is kept, and what it is of. ``source`` is that of its joint."""

    joint: str
    subject: str
    verdict: str
    why: str
    source: str
    run: Run


class Pieces:
    """The verdicts in a file, one a line, each with the state of the code that it is of."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def found(self, joints: dict[str, Joint]) -> dict[tuple[str, str], Judged]:
        """Those of the code and libraries that are here."""
        here = described()
        return {
            (line.joint, line.subject): Judged(Verdict[line.verdict], line.why)
            for line in lines([self._path])
            if line.joint in joints
            and line.source == source_of(joints[line.joint])
            and (line.run.code, line.run.libraries) == (here.code, here.libraries)
        }

    def add(self, joint: Joint, subject: str, judged: Judged) -> None:
        """Keep one more."""
        line = Line(
            joint.name, subject, judged.verdict.name, judged.why, source_of(joint), described()
        )
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def lines(paths: Iterable[Path]) -> Iterator[Line]:
    """Those of several files, in their order."""
    for path in paths:
        for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                joint, subject, verdict, why, source, run = json.loads(text)
                yield Line(joint, subject, verdict, why, source, Run(*run))
            except (ValueError, TypeError):  # The run was ended while it wrote this.
                continue


def described() -> Run:
    """This day, the code that is here, Python and the libraries."""
    versions = [f"Python {platform.python_version()}"]
    for name in (*PACKAGES, *OPTIONAL):
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            if name not in OPTIONAL:
                versions.append(f"no {name}")
    return Run(str(date.today()), code(), _commit(), ", ".join(versions))


@lru_cache(maxsize=None)
def code() -> str:
    """A digest of the files that all rows depend on, and of the release that they run."""
    digest = hashlib.sha256(RELEASE.encode())
    areas = {*NO_PART, *(f"{area}.py" for area in AREAS)}
    for room in ROOMS:
        for path in sorted((REPOSITORY / room).rglob("*")):
            name = path.relative_to(REPOSITORY).as_posix()
            if path.suffix not in (".py", ".json") or "copies" in path.parts:
                continue
            if "/".join(name.split("/")[:2]) in NO_ROOMS:
                continue
            # Of an area's file each joint has its part; what tests hold is no row's.
            if path.parent == FOLDER and (path.name in areas or path.name[:5] == "test_"):
                continue
            if path.name != "record.json":
                digest.update(name.encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


@lru_cache(maxsize=None)
def _commit() -> str:
    """The last commit that changed what rows depend on; "" where there is none, or more changed."""

    def said(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments, "--", *ROOMS],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    try:
        return "" if said("status", "--porcelain") else said("log", "-1", "--format=%h")
    except (OSError, subprocess.CalledProcessError):
        return ""


def source_of(joint: Joint) -> str:
    """A digest of the statements that its function is made of, and of how it is judged."""
    named = _statements(joint.area)
    wanted, found = [joint.run.__name__], set()
    while wanted:
        name = wanted.pop()
        if name not in found and name in named:
            found.add(name)
            _, uses = named[name]
            wanted += uses
    text = "\n".join(named[name][0] for name in sorted(found))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


@lru_cache(maxsize=None)
def _statements(area: str) -> dict[str, tuple[str, list[str]]]:
    """The text of an area's statements and the names in it, by the names that they bind."""
    text = (FOLDER / f"{area}.py").read_text(encoding="utf-8")
    written = text.splitlines()
    named: dict[str, tuple[str, list[str]]] = {}
    for statement in ast.parse(text).body:
        uses = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
        decorators: list[Any] = getattr(statement, "decorator_list", [])
        first = min(each.lineno for each in (statement, *decorators))
        own = "\n".join(written[first - 1 : statement.end_lineno])
        if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
            named[statement.name] = own, uses
        elif isinstance(statement, (ast.Import, ast.ImportFrom)):
            for each in statement.names:
                alone = copy(statement)
                alone.names = [each]
                named[each.asname or each.name.partition(".")[0]] = ast.unparse(alone), []
        else:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    named[node.id] = own, uses
    return named
