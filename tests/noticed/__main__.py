"""Changes the package's own code in one place at a time, and prints what no test noticed.

``python -m tests.noticed --part hook --count 20 --seed 0``. The changes are made in a copy of the
tree, never in the checkout. For each, the tests that execute what is changed run until one fails,
among those of its file and its part (``tests/noticed/parts.py``; ``tests/noticed/executed.py``
knows which execute a line); a change that makes them hang is noticed too. Ends with exit code 1
where more was missed than ``--allowed`` percent.
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
from pathlib import Path

from tests import interpreters
from tests.noticed import executed, parts
from tests.noticed.changes import Change, sample
from tests.noticed.harmless import HARMLESS

# What tests take where nothing is changed, and how many times as long they may take.
SECONDS, TIMES, START = 120.0, 8, 60
NO_TESTS = 5
# How pytest begins a line about a test that does not pass.
FAILED = ("FAILED ", "ERROR ")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="make mutate")
    parser.add_argument("--part", choices=[*parts.PARTS, "all"], default="all")
    parser.add_argument("--count", type=int, default=20, help="changes of each part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--allowed", type=float, default=4.0, help="percent that may be missed")
    parser.add_argument("--file", default="", help="only files whose path has this in it")
    parser.add_argument("--own", action="store_true", help="run the tests of each file alone")
    chosen = parser.parse_args()
    ended = True
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        copy(tree)
        for part in parts.PARTS if chosen.part == "all" else [chosen.part]:
            generator = random.Random(f"{chosen.seed} {part}")
            ended &= survey(tree, part, generator, chosen)
    raise SystemExit(0 if ended else 1)


def survey(tree: Path, part: str, generator: random.Random, chosen: argparse.Namespace) -> bool:
    """Whether enough of a part's changes are noticed; prints each that is not."""
    files = [each for each in parts.files(part) if chosen.file in each.as_posix()]
    # A file gets changes in proportion to its length.
    lengths = [len((parts.REPOSITORY / each).read_text("utf-8")) for each in files]
    drawn = generator.choices(files, lengths, k=chosen.count)
    stages = {file: stages_of(part, file, chosen.own) for file in set(drawn)}
    executed.record(tree, (each for pair in stages.values() for stage in pair for each in stage))
    noticed, missed, harmless = 0, [], 0
    for file in sorted(set(drawn)):
        text = (parts.REPOSITORY / file).read_text("utf-8")
        for each in sample(text, drawn.count(file), generator):
            if is_harmless(file, each):
                harmless += 1
                continue
            start = time.monotonic()
            by = noticing(tree, file, each, *to_run(stages[file], file, each))
            print(f"{f'noticed by {by}' if by else 'MISSED'}, {time.monotonic() - start:.0f} s")
            print(f"  {file}:{each.line}\n    {each.before}\n    {each.after}", flush=True)
            noticed += bool(by)
            if not by:
                missed.append((file, each))
    total = noticed + len(missed)
    print(f"\n{part}: {noticed} of {total} noticed, and {harmless} without effect")
    for file, each in missed:
        print(f'    Harmless("{file}", {each.before!r}, {each.after!r}, "why"),')
    return bool(100 * len(missed) <= chosen.allowed * total)


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
    stages: tuple[list[str], list[str]], file: Path, change: Change
) -> tuple[list[str], float]:
    """The tests that should notice a change, or files of such, and how long they may take."""
    first, rest = stages
    tests = executed.executing(first + rest, file, change)
    names = executed.ordered(tests, first, SECONDS)
    if not names:
        return first or rest, START + TIMES * SECONDS
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
        if by is None or by in _passing or not by.startswith(FAILED):
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
    failed = [line for line in done.stdout.splitlines() if line.startswith(FAILED)]
    return failed[0].split(" - ")[0] if failed else (done.stderr.splitlines() or ["an error"])[-1]


_second = int(time.time())


def write(path: Path, text: str) -> None:
    """Write a module so that no bytecode of what was there before is taken for its own."""
    global _second  # noqa: PLW0603
    _second += 1
    path.write_text(text, "utf-8")
    os.utime(path, (_second, _second))


if __name__ == "__main__":
    main()
