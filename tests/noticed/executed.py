"""Which tests execute a line, so that a change costs seconds: recorded once, kept in ``build``.

A record is of one file of tests, and is made again when that changes. It is a choice, not a proof:
what a line executes in a process that does not end by itself is not in it.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any, Callable, Iterable, NamedTuple, Protocol, Sequence, TypeVar

import coverage

from tests import interpreters
from tests.noticed import parts
from tests.noticed.changes import Change

KEPT = parts.REPOSITORY / "build" / "noticed"
MODULES = (*interpreters.TORCH, "pytest", "_pytest.assertion.rewrite", "einops", "coverage")
SECONDS = 4 * 3600
# How pytest begins a line about a test that does not pass.
FAILED = ("FAILED ", "ERROR ")
# Stands after an import of the package's first module, on its line.
IMPORTED = "; sys.path.append({0!r}); import noticed_recorder; sys.path.remove({0!r})"

_Given = TypeVar("_Given")
_Made = TypeVar("_Made")


class Timed(NamedTuple):
    """A test, and how long it takes."""

    name: str
    seconds: float

    @property
    def function(self) -> str:
        """It, whatever its parameters."""
        return self.name.partition("[")[0]

    @property
    def file(self) -> str:
        """The file that it stands in."""
        return self.name.partition("::")[0]


# The copy of the tree that is this process's.
tree = Path()


class Spread(Protocol):
    """How a function is applied to each of several: as ``map`` does, or by many workers."""

    def __call__(
        self, function: Callable[[_Given], _Made], given: Iterable[_Given], /
    ) -> Iterable[_Made]:
        """What it gives for each, in any order."""


def record(spread: Spread, files: Iterable[str], seconds: float = 0.0) -> None:
    """Run the files of tests whose record is missing or stale, each in a worker's copy.

    Of a file whose tests take longer than ``seconds``, where it is given, those before count.
    """
    missing = [each for each in sorted(set(files)) if not _kept(each).exists()]
    if not missing:
        return
    print(f"Recording what {len(missing)} files of tests execute", flush=True)
    # The longest last would keep all others waiting.
    missing.sort(key=lambda each: -(parts.REPOSITORY / each).stat().st_size)
    for file, said in spread(record_one, [(each, seconds) for each in missing]):
        print(f"  {file}: {said}", flush=True)


def record_one(pair: tuple[str, float]) -> tuple[str, str]:
    """Record a file of tests in this process's copy; it, and what pytest says of it."""
    file, seconds = pair
    folder, recorded = tree.parent / "recorder", tree.parent / "recorded"
    shutil.rmtree(folder, ignore_errors=True)
    for each in (folder / "records", recorded):
        each.mkdir(parents=True, exist_ok=True)
    recorder = Path(__file__).with_name("recorder.py")
    shutil.copy2(recorder, folder / "noticed_recorder.py")
    (folder / "coverage").symlink_to(Path(coverage.__file__).parent)
    package = tree / "jetson_mamba" / "__init__.py"
    text = package.read_text("utf-8")
    try:
        imported = f"\nimport sys{IMPORTED.format(str(folder))}\n"
        package.write_text(text.replace("\nimport sys\n", imported, 1), "utf-8")
        said = _run(tree, [file], recorded, seconds or SECONDS)
    finally:
        package.write_text(text, "utf-8")
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob(f"{_name(file)}.*.json"):
        old.unlink()
    made = recorded / f"{_name(file)}.json"
    record: dict[str, Any] = {"tests": [], "failed": [], "seconds": [], "executed": {}}
    if made.exists():
        record = json.loads(made.read_text("utf-8"))
    record["failed"] = _failing(tree, record["failed"])
    _kept(file).write_text(json.dumps(record), "utf-8")
    return file, "; ".join([said, *(f"{each} fails" for each in record["failed"])])


def _run(tree: Path, files: list[str], recorded: Path, seconds: float) -> str:
    arguments = ["-m", "pytest", "-q", "-p", "tests.noticed.recording", "-p", "no:cacheprovider"]
    done = interpreters.run(
        [*arguments, *files],
        env={
            **environment(tree),
            "NOTICED_TREE": str(tree),
            "NOTICED_RECORDED": str(recorded),
        },
        cwd=tree,
        timeout=seconds,
        modules=MODULES,
    )
    said = done.stdout.splitlines() or done.stderr.splitlines() or [""]
    return said[-1]


def _failing(tree: Path, tests: list[str]) -> list[str]:
    """Those that fail also where nothing records them, and so can notice nothing."""
    options = ["-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    return [
        each
        for each in tests
        if interpreters.run(
            ["-m", "pytest", *options, each], env=environment(tree), cwd=tree, modules=MODULES
        ).returncode
    ]


def environment(tree: Path) -> dict[str, str]:
    """That of pytest in the copy of the tree, which stands before the checkout's own package."""
    return {
        **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
        "PYTHONPATH": str(tree),
        "JETSON_MAMBA_CACHE": str(tree.parent / "cache"),
        "OMP_NUM_THREADS": "1",
    }


def _name(file: str) -> str:
    return file.replace("/", "+")


def _kept(file: str) -> Path:
    digest = hashlib.sha256((parts.REPOSITORY / file).read_bytes()).hexdigest()[:12]
    return KEPT / f"{_name(file)}.{digest}.json"


def executing(own: Sequence[str], rest: Sequence[str], module: Path, change: Change) -> list[Timed]:
    """The tests of these files that execute what is changed.

    Of a line that no test executes itself, as what runs at import, those that execute its module,
    and all of its ``own`` files: a constant is read by whoever asks for it, and so is a default.
    """
    text = (parts.REPOSITORY / module).read_text("utf-8")
    of_head, extents = _extents(text, change.line)
    *nearest, functions = [set(each) for each in extents]
    records = {each: json.loads(_kept(each).read_text("utf-8")) for each in (*own, *rest)}
    for lines in (*nearest, functions):
        found = []
        for file, each in records.items():
            executed = each["executed"].get(module.as_posix(), {})
            bits = 0
            for line in lines:
                bits |= int(executed.get(line, "0"), 16)
            if (of_head or lines is functions) and file in own:
                bits = (1 << len(each["tests"])) - 1
            pairs = zip(each["tests"], each["seconds"])
            found += [
                Timed(*pair)
                for number, pair in enumerate(pairs)
                if bits >> number & 1 and pair[0] not in each.get("failed", ())
            ]
        if found:
            return found
    return []


def _extents(text: str, line: int) -> tuple[bool, list[list[str]]]:
    """The texts of the statement at a line, or of its whole function, and of all functions.

    First whether the line is of the head of a function, with its defaults.
    """
    texts = [each.strip() for each in text.splitlines()]
    functions, statement, whole = [], None, None
    inside = of_head = False
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.stmt):
            continue
        last = node.end_lineno or node.lineno
        head = last
        bodies = [each for each in getattr(node, "body", []) if isinstance(each, ast.stmt)]
        if bodies:
            head = max(node.lineno, bodies[0].lineno - 1)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            # A definition runs at import, and its docstring never.
            body = texts[bodies[0].lineno - 1 : last]
            functions += body
            if node.lineno <= line <= last:
                inside = True
                of_head = of_head or line < bodies[0].lineno
                # Which a change of a default, or a body that is skipped, is about.
                if line < bodies[0].lineno + bool(ast.get_docstring(node)):
                    whole = body
        elif not isinstance(node, ast.ClassDef) and node.lineno <= line <= head:
            statement = texts[node.lineno - 1 : head]
    nearest = whole or (statement if inside else None)
    return of_head, [*([nearest] if nearest else []), functions]


def ordered(tests: Iterable[Timed], own: Iterable[str], seconds: float) -> list[str]:
    """Those to run, the own first, the quick before the slow, one of each function before more.

    No more than what takes so many seconds, of each of the two.
    """
    first = tuple(own)
    among: dict[str, int] = {}
    ranked = []
    for each in sorted(tests, key=lambda test: test.seconds):
        among[each.function] = among.get(each.function, -1) + 1
        ranked.append((among[each.function], each))
    cost: dict[tuple[bool, str], float] = {}
    for rank, each in ranked:
        key = (rank > 0, each.file)
        cost[key] = cost.get(key, 0.0) + each.seconds

    def place(pair: tuple[int, Timed]) -> tuple[object, ...]:
        rank, test = pair
        others = not test.file.startswith(first)
        return (others, rank > 0, cost[rank > 0, test.file], test.file, rank, test.seconds)

    chosen: list[str] = []
    spent = {False: 0.0, True: 0.0}
    for pair in sorted(ranked, key=place):
        others = not pair[1].file.startswith(first)
        if not spent[others] or spent[others] + pair[1].seconds <= seconds:
            spent[others] += pair[1].seconds
            chosen.append(pair[1].name)
    return chosen
