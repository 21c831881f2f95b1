"""Prints what comes of mutants; see ``python -m tests.mutants --help``."""

from __future__ import annotations

import argparse
import compileall
import math
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Iterator

from tests import forks
from tests.mutants.registry import KINDS, Mutant, mutants
from tests.mutants.verdicts import FORBIDDEN, Finding, Verdict
from tools.releases import release_path

Findings = dict[Mutant, Finding]


def sample(all_of_them: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """So many, as evenly over the mutations as there are mutants of each; all for 0."""
    if not count:
        return all_of_them
    choice = random.Random(seed)
    by_mutation: dict[str, list[Mutant]] = defaultdict(list)
    for mutant in all_of_them:
        by_mutation[mutant.mutation].append(mutant)
    for group in by_mutation.values():
        choice.shuffle(group)
    chosen: list[Mutant] = []
    while len(chosen) < min(count, len(all_of_them)):
        for group in by_mutation.values():
            if group and len(chosen) < count:
                chosen.append(group.pop())
    return chosen


@contextmanager
def workers(processes: int = 2, cache: Path | None = None) -> Iterator[forks.Workers]:
    """The processes that :func:`run` uses, with a folder for copies; of their own by default."""
    with tempfile.TemporaryDirectory() as own:
        started = forks.Workers("tests.mutants.worker", cache or Path(own), processes)
        with started:
            yield started


def run(
    chosen: list[Mutant],
    workers: forks.Workers,
    done: Callable[[Mutant, Finding], None] = lambda *_: None,
    seconds: float = math.inf,
) -> list[tuple[Mutant, Finding]]:
    """Run mutants, and tell of each as it is done; none is begun after so many seconds."""
    for release in {mutant.release for mutant in chosen}:
        compileall.compile_dir(release_path(release) / "mamba_ssm", quiet=2)
    found: list[tuple[Mutant, Finding]] = []

    def one(place: int, answer: Any) -> None:
        finding = Finding(Verdict[answer[0]], answer[1])
        found.append((chosen[place], finding))
        done(chosen[place], finding)

    workers.run(chosen, one, seconds)
    return found


def table(found: list[tuple[Mutant, Finding]], by: Callable[[Mutant], str]) -> str:
    """The counts, a row for each kind and one for all."""
    counts: dict[str, Counter[Verdict]] = defaultdict(Counter)
    for mutant, finding in found:
        counts[by(mutant)][finding.verdict] += 1
        counts["all"][finding.verdict] += 1
    names = sorted(counts, key=lambda name: (name == "all", name))
    width = max(map(len, names))
    lines = [" " * width + "".join(f"{each.name.lower().replace('_', ' '):>9}" for each in Verdict)]
    lines += [
        f"{name:{width}}" + "".join(f"{counts[name][each]:9}" for each in Verdict) for name in names
    ]
    return "\n".join(lines)


def main() -> int:
    """Run what the command line asks for; 1 if anything that is forbidden came of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants")
    parser.add_argument("--count", type=int, default=0, help="how many, evenly chosen; 0 for all")
    parser.add_argument("--seed", type=int, default=0, help="of the choices (default: 0)")
    parser.add_argument("--kind", choices=KINDS, help="of this kind only")
    parser.add_argument("--mutation", help="of this function only")
    parser.add_argument("--release", help="of this release's texts only")
    parser.add_argument("--path", default="", help="of the files whose path has this in it only")
    parser.add_argument("--name", default="", help="those whose whole name has this in it only")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--part", default="1/1", help="of those the first of five, say: 1/5")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin none after these")
    parser.add_argument("--verbose", action="store_true", help="tell of every mutant")
    chosen = parser.parse_args()
    fitting = [
        mutant
        for mutant in mutants(chosen.seed)
        if chosen.kind in (None, mutant.kind)
        and chosen.mutation in (None, mutant.mutation)
        and chosen.release in (None, mutant.release)
        and chosen.path in mutant.path
        and chosen.name in mutant.name
    ]
    if not fitting:
        parser.error("no mutant is of all that was asked for")
    number, _, parts = chosen.part.partition("/")
    if not (number.isdigit() and parts.isdigit() and 0 < int(number) <= int(parts)):
        parser.error(f"--part: expected such as 1/5, found {chosen.part!r}")
    fitting = sample(fitting, chosen.count, chosen.seed)[int(number) - 1 :: int(parts)]
    start = time.monotonic()

    def done(mutant: Mutant, finding: Finding) -> None:
        if chosen.verbose or finding.verdict in FORBIDDEN:
            print(f"{finding.verdict.name} {mutant.name}: {finding.detail}", flush=True)

    with workers(chosen.processes) as started:
        found = run(fitting, started, done, chosen.seconds)
    print(table(found, lambda mutant: mutant.kind))
    print(", ".join(f"{each.name.lower()}: {each.value}" for each in Verdict))
    took = time.monotonic() - start
    print(f"seed {chosen.seed}, {len(found)} of {len(fitting)} mutants, {took:.0f} s")
    forbidden = any(finding.verdict in FORBIDDEN for _, finding in found)
    return int(forbidden or len(found) < len(fitting))


if __name__ == "__main__":
    sys.exit(main())
