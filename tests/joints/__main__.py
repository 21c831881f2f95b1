"""Runs every row: ``python -m tests.joints [--joint NAME] [--subject NAME] [--list]``.

A NAME is any part of a joint's name, or a word of a subject's. With ``--resume FILE`` verdicts are
kept in a file, and not asked for again while the code is the same. ``--page FILE…`` adds those of
such files, which may come from several machines, to what the page shows; ``--page`` alone writes it
anew, without joints that were changed since they were run. A run of everything does so by itself.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterable

from tests.joints import record
from tests.joints.declared import AREAS, joints
from tests.joints.page import PAGE, page
from tests.joints.pieces import Line, Pieces, code, described, lines, source_of
from tests.joints.rows import Judge
from tests.joints.subjects import SUBJECTS
from tests.joints.verdicts import Verdict


def main() -> int:
    """Print each row that does not pass, and how many do; 1 unless all do."""
    parser = argparse.ArgumentParser(prog="python -m tests.joints", description=__doc__)
    parser.add_argument("--joint", default="", help="a part of the names of joints")
    parser.add_argument("--subject", default="", help="a word of the names of subjects")
    parser.add_argument("--area", default="", choices=["", *AREAS], help="one file of joints")
    parser.add_argument("--list", action="store_true", help="name the joints and subjects")
    parser.add_argument("--all", action="store_true", help="print the rows that pass as well")
    parser.add_argument("--sample", action="store_true", help="the rows of make test")
    parser.add_argument("--processes", type=int, default=1, help="how many rows at a time")
    parser.add_argument("--seconds", type=float, default=math.inf, help="begin no row after these")
    parser.add_argument("--resume", type=Path, help="keep verdicts in this file, and go on there")
    parser.add_argument("--without", type=Path, nargs="+", default=[], help="no row of these files")
    parser.add_argument("--page", type=Path, nargs="*", help="run nothing: write the page of these")
    parser.add_argument("--code", action="store_true", help="a digest of the code that rows run")
    chosen = parser.parse_args()
    every = joints()
    if chosen.code:
        print(code())
        return 0
    if chosen.page is not None:
        write_page(lines(chosen.page))
        return 0
    names = [
        name for name, each in every.items() if chosen.joint in name and chosen.area in each.area
    ]
    subjects = [
        name for name in SUBJECTS if not chosen.subject or chosen.subject in (name, *name.split())
    ]
    if chosen.list:
        print(*names, "", *subjects, sep="\n")
        return 0
    rows = [
        (every[joint], subject)
        for joint in names
        for subject in subjects
        if every[joint].fits(subject, SUBJECTS[subject])
    ]
    if chosen.sample:
        from tests.joints.test_joints import ROWS

        rows = [(joint, subject) for joint, subject in rows if (joint.name, subject) in ROWS]
    pieces = Pieces(chosen.resume) if chosen.resume else None
    elsewhere = {(line.joint, line.subject) for line in lines(chosen.without)}
    wanted = [(joint.name, subject) for joint, subject in rows]
    wanted = [row for row in wanted if row not in elsewhere]
    kept = pieces.found(every) if pieces else {}
    found = {row: judged for row, judged in kept.items() if row in wanted}
    left = iter([row for row in wanted if row not in found])
    start = time.monotonic()
    lock = threading.Lock()

    def judge_rows(_: int) -> None:
        with tempfile.TemporaryDirectory() as cache, Judge(Path(cache)) as judge:
            while time.monotonic() - start < chosen.seconds:
                with lock:
                    row = next(left, None)
                if row is None:
                    return
                joint, subject = row
                judged = judge(every[joint], subject)
                with lock:
                    found[row] = judged
                    if pieces:
                        pieces.add(every[joint], subject, judged)
                    if chosen.all or not judged.verdict.passes:
                        print(f"{judged.verdict.value}: {joint} | {subject} | {judged.why}")
                        sys.stdout.flush()

    with ThreadPoolExecutor(chosen.processes) as pool:
        list(pool.map(judge_rows, range(chosen.processes)))
    passing = sum(judged.verdict.passes for judged in found.values())
    absent = sum(judged.verdict is Verdict.ABSENT for judged in found.values())
    said = f", {absent} not run for want of a package" if absent else ""
    print(f"{passing} of {len(found)} rows pass{said}, {time.monotonic() - start:.0f} s")
    if not (chosen.joint or chosen.subject or chosen.area or chosen.without):
        run = described()
        write_page(
            Line(*row, judged.verdict.name, judged.why, source_of(every[row[0]]), run)
            for row, judged in found.items()
        )
    return 0 if passing == len(wanted) - absent else 1


def write_page(new: Iterable[Line]) -> None:
    """The page, and the record that it is of, with what new lines say."""
    rows = record.of_these_joints(record.with_lines(record.read(), new), joints())
    record.write(rows)
    PAGE.write_text(page(rows), encoding="utf-8")
    print(PAGE)


if __name__ == "__main__":
    sys.exit(main())
