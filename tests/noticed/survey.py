"""Prints which changes of the package's own code no test noticed.

It changes one place at a time. ``python -m tests.noticed --part hook --count 20 --seed 0``. The
changes are made in a copy of the tree, never in the checkout. For each, the tests that execute what
is changed run until one fails, among those of its file and its part (``tests/noticed/parts.py``;
``tests/noticed/executed.py`` knows which execute a line); a change that makes them hang is noticed
too. Ends with exit code 1 where more was missed than ``--allowed`` percent.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.pool import Pool
from pathlib import Path
from typing import Iterator, NamedTuple

from tests import interpreters
from tests.noticed import executed, parts
from tests.noticed.changes import Change, sample
from tests.noticed.harmless import HARMLESS

# What tests take where nothing is changed, and how many times as long they may take.
SECONDS, TIMES, START = 120.0, 8, 60
NO_TESTS = 5


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make mutate")
    parser.add_argument("--part", choices=[*parts.PARTS, "all"], default="all")
    parser.add_argument("--count", type=int, default=20, help="changes of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allowed", type=float, default=4.0, help="percent that may be missed")
    parser.add_argument("--file", default="", help="only files whose path has this in it")
    parser.add_argument("--own", action="store_true", help="run the tests of each file alone")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="at a time, each in its own copy"
    )
    parser.add_argument(
        "--each", type=float, default=SECONDS, help="what a file's own tests may take, and others"
    )
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="begin nothing later, half of it for the record"
    )
    parser.add_argument(
        "--resume", type=Path, help="a file of results: what it has is not tried again"
    )
    chosen = parser.parse_args()
    end = time.monotonic() + chosen.seconds if chosen.seconds else float("inf")
    names = list(parts.PARTS) if chosen.part == "all" else [chosen.part]
    drawn = [each for part in names for each in files_drawn(part, chosen)]
    with tempfile.TemporaryDirectory() as folder, workers(chosen.workers, folder) as pool:
        tests = {each for one in drawn for stage in one.stages for each in stage}
        executed.record(pool.imap_unordered, tests, chosen.seconds / 2)
        changes = list(pool.imap_unordered(changes_of, [(each, chosen.seed) for each in drawn]))
        tasks = [Task(*pair, chosen.each, end) for each in changes for pair in each]
        # A run that is ended early has seen some of everything.
        tasks.sort(key=lambda task: (task.file.path, task.change.text))
        random.Random(chosen.seed).shuffle(tasks)
        results = known(chosen.resume, tasks)
        left = [each for each in tasks if each.name not in results]
        for task, by, seconds in pool.imap_unordered(tried, left):
            if by == NOT_TRIED:
                continue
            results[task.name] = by
            tell(task, by, seconds)
            if chosen.resume:
                with chosen.resume.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([task.name, by]) + "\n")
    results_of = [(each, results[each.name]) for each in tasks if each.name in results]
    ended = [summed(part, results_of, chosen.allowed) for part in names]
    raise SystemExit(0 if all(ended) else 1)


class Drawn(NamedTuple):
    """A file of a part, how many changes it gets, and the tests that should notice them."""

    part: str
    path: Path
    times: int
    stages: tuple[list[str], list[str]]


class Task(NamedTuple):
    """A change of a file, how long its tests may take, and until when it is to begin."""

    file: Drawn
    change: Change
    seconds: float
    end: float

    @property
    def name(self) -> str:
        """It, among those of its seed and tree."""
        change = self.change
        return f"{self.file.path.as_posix()}:{change.line}: {change.before} -> {change.after}"


def known(file: Path | None, tasks: list[Task]) -> dict[str, str | None]:
    """What became of those that a file of results has."""
    if file is None or not file.exists():
        return {}
    names = {each.name for each in tasks}
    pairs = (json.loads(line) for line in file.read_text("utf-8").splitlines())
    return {name: by for name, by in pairs if name in names}


NO_EFFECT, NOT_TRIED = "no effect", "not tried"


def files_drawn(part: str, chosen: argparse.Namespace) -> list[Drawn]:
    """The files of a part that get changes, in proportion to their length."""
    files = [each for each in parts.files(part) if chosen.file in each.as_posix()]
    if not files:
        return []
    lengths = [len((parts.REPOSITORY / each).read_text("utf-8")) for each in files]
    drawn = random.Random(f"{chosen.seed} {part}").choices(files, lengths, k=chosen.count)
    return [
        Drawn(part, each, drawn.count(each), stages_of(part, each, chosen.own))
        for each in sorted(set(drawn))
    ]


@contextmanager
def workers(count: int, folder: str) -> Iterator[Pool]:
    """Processes that each have a copy of the tree."""
    # Forked ones would share the servers of interpreters.
    pool = get_context("spawn").Pool(count, begin, (folder,))
    try:
        yield pool
        pool.close()
    except BaseException:
        pool.terminate()
        raise
    finally:
        pool.join()


def begin(folder: str) -> None:
    """Be a worker, whose copy stands in a folder of its own."""
    executed.tree = Path(tempfile.mkdtemp(dir=folder)) / "tree"
    copy(executed.tree)


def changes_of(pair: tuple[Drawn, int]) -> list[tuple[Drawn, Change]]:
    """The changes of a file, the same for the same seed."""
    drawn, seed = pair
    text = (parts.REPOSITORY / drawn.path).read_text("utf-8")
    generator = random.Random(f"{seed} {drawn.path.as_posix()}")
    return [(drawn, each) for each in sample(text, drawn.times, generator)]


def tried(task: Task) -> tuple[Task, str | None, float]:
    """What notices a change, None where nothing does, and how long that took."""
    file, change, seconds, end = task
    if time.monotonic() > end:
        return task, NOT_TRIED, 0.0
    if is_harmless(file.path, change):
        return task, NO_EFFECT, 0.0
    start = time.monotonic()
    run = to_run(file.stages, file.path, change, seconds)
    try:
        by = noticing(executed.tree, file.path, change, *run)
    except RuntimeError as error:
        print(f"{task.name} is not tried: {error}", flush=True)
        by = NOT_TRIED
    return task, by, time.monotonic() - start


def tell(task: Task, by: str | None, seconds: float) -> None:
    """Print what became of a change."""
    said = by if by == NO_EFFECT else f"noticed by {by}" if by else "MISSED"
    change = task.change
    print(f"{task.file.part}: {said}, {seconds:.0f} s")
    print(f"  {task.file.path}:{change.line}\n    {change.before}\n    {change.after}", flush=True)


def summed(part: str, results: list[tuple[Task, str | None]], allowed: float) -> bool:
    """Whether enough of a part's changes were noticed; prints each that was not."""
    of_part = [(task, by) for task, by in results if task.file.part == part]
    missed = [task for task, by in of_part if by is None]
    harmless = sum(by == NO_EFFECT for _, by in of_part)
    total = len(of_part) - harmless
    print(f"\n{part}: {total - len(missed)} of {total} noticed, and {harmless} without effect")
    for file, change, *_ in missed:
        print(f'    Harmless("{file.path}", {change.before!r}, {change.after!r}, "why"),')
    return bool(100 * len(missed) <= allowed * total)


def is_harmless(file: Path, change: Change) -> bool:
    """Whether it is listed as one without effect."""
    listed = (each[:3] for each in HARMLESS)
    return (file.as_posix(), change.before, change.after) in listed


def copy(tree: Path) -> None:
    """The files of the checkout that git knows or would take, in another folder."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(
        command, cwd=parts.REPOSITORY, check=True, capture_output=True, text=True
    )
    for name in filter(None, listed.stdout.split("\0")):
        source = parts.REPOSITORY / name
        if source.exists():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, tree / name, follow_symlinks=False)
    (tree / ".releases").symlink_to(parts.REPOSITORY / ".releases")
    # What the tests of a checkout find beside it, for those that start an interpreter of theirs.
    (tree / ".venv").symlink_to(parts.REPOSITORY / ".venv")


def stages_of(part: str, file: Path, own: bool) -> tuple[list[str], list[str]]:
    """The files of what should notice a change; of those of its part none where ``own``."""
    first, rest = parts.tests(part, file)
    return first, [] if own and first else rest


def to_run(
    stages: tuple[list[str], list[str]], file: Path, change: Change, seconds: float
) -> tuple[list[str], float]:
    """The tests that should notice a change, or files of such, and how long they may take."""
    first, rest = stages
    tests = executed.executing(first, rest, file, change)
    names = executed.ordered(tests, first, seconds)
    if not names:
        return first or rest, START + TIMES * seconds
    usual = {each.name: each.seconds for each in tests}
    return names, START + TIMES * sum(usual[each] for each in names)


def noticing(tree: Path, file: Path, change: Change, chosen: list[str], limit: float) -> str | None:
    """The test that fails with a change, or how their run ends otherwise; None where all pass."""
    path = tree / file
    before = path.read_text("utf-8")
    while True:
        left = [each for each in chosen if each not in _failing]
        try:
            write(path, change.text)
            by = failing(tree, left, limit)
        finally:
            write(path, before)
        if by is None or by in _passing or not by.startswith(executed.FAILED):
            return by
        test = by.partition(" ")[2]
        if failing(tree, [test], limit) is None:
            _passing.add(by)
            return by
        if test not in chosen:
            raise RuntimeError(f"{test} fails without a change")
        print(f"{test} fails without a change")
        _failing.add(test)


# Tests that have noticed something and pass where nothing is changed, and those that do not pass.
_passing: set[str] = set()
_failing: set[str] = set()


def failing(tree: Path, chosen: list[str], limit: float) -> str | None:
    """The first test that fails of those chosen, which are files, or tests in their order."""
    if not chosen:
        return None
    options = ["-x", "-q", "--no-header", "--tb=no", "-p", "no:cacheprovider"]
    settings = executed.environment(tree)
    if any("::" in each for each in chosen):
        names = tree.parent / "chosen.json"
        names.write_text(json.dumps(chosen), "utf-8")
        settings["NOTICED_CHOSEN"] = str(names)
        options += ["-p", "tests.noticed.chosen"]
    files = dict.fromkeys(each.partition("::")[0] for each in chosen)
    done = interpreters.run(
        ["-m", "pytest", *options, *files],
        env=settings,
        cwd=tree,
        timeout=limit,
        modules=executed.MODULES,
    )
    if done.returncode == 0:
        return None
    if done.returncode == -signal.SIGALRM:
        return f"the time, more than {limit:.0f} s"
    if done.returncode < 0:
        return f"a process that ends by signal {-done.returncode}"
    if done.returncode == NO_TESTS:
        raise RuntimeError(f"no test is run of {', '.join(chosen)}")
    failed = [line for line in done.stdout.splitlines() if line.startswith(executed.FAILED)]
    return failed[0].split(" - ")[0] if failed else (done.stderr.splitlines() or ["an error"])[-1]


_second = int(time.time())


def write(path: Path, text: str) -> None:
    """Write a module so that no bytecode of what was there before is taken for its own.

    None is left; and what a process that still runs leaves of it afterwards is of another time.
    """
    global _second  # noqa: PLW0603
    _second += 1
    path.write_text(text, "utf-8")
    os.utime(path, (_second, _second))
    for bytecode in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        bytecode.unlink()
