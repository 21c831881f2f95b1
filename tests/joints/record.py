"""The verdicts that the page shows, each with its run.

A run of all rows takes longer than most changes. So verdicts of earlier runs stay, and say which
they are of; those of a joint that was changed since go. ``record.json`` has a line for each joint:
a digest of its source, then for each subject a letter for the verdict, and the number of its run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple

from tests.joints.declared import Joint
from tests.joints.pieces import FOLDER, Line, Run, source_of
from tests.joints.subjects import SUBJECTS
from tests.joints.verdicts import Verdict

RECORD = FOLDER / "record.json"
LETTERS = {
    Verdict.RIGHT: "R",
    Verdict.SAME_ERROR: "E",
    Verdict.REFUSED: "F",
    Verdict.WORSE: "W",
    Verdict.SILENT: "S",
}
_VERDICTS = {letter: verdict for verdict, letter in LETTERS.items()}
NONE = "-"


class Kept(NamedTuple):
    """A verdict, its run, and the source of its joint."""

    verdict: Verdict
    run: Run
    source: str


Rows = Mapping["tuple[str, str]", Kept]


def read(path: Path = RECORD) -> dict[tuple[str, str], Kept]:
    """What was kept, by the names of joint and subject."""
    if not path.exists():
        return {}
    kept = json.loads(path.read_text(encoding="utf-8"))
    runs = [Run(*each) for each in kept["runs"]]
    found = {}
    for joint, (source, cells) in kept["joints"].items():
        for subject, cell in zip(kept["subjects"], cells.split()):
            if cell != NONE:
                found[joint, subject] = Kept(_VERDICTS[cell[0]], runs[int(cell[1:])], source)
    return found


def with_lines(rows: Rows, lines: Iterable[Line]) -> dict[tuple[str, str], Kept]:
    """The rows, and those of the lines in their order; a verdict of no row that ran is none."""
    found = dict(rows)
    for line in lines:
        verdict = Verdict[line.verdict]
        if verdict in LETTERS:
            found[line.joint, line.subject] = Kept(verdict, line.run, line.source)
    # One state of the code may have been run before it was committed, and after commits of joints.
    runs = {kept.run for kept in found.values()}
    commits = {run.code: run.commit for run in sorted(runs)}
    return {
        row: kept._replace(run=kept.run._replace(commit=commits[kept.run.code]))
        for row, kept in found.items()
    }


def of_these_joints(rows: Rows, joints: Mapping[str, Joint]) -> dict[tuple[str, str], Kept]:
    """Those whose joint is there, fits the subject, and is what it was when it was run."""
    return {
        (name, subject): kept
        for (name, subject), kept in rows.items()
        if name in joints
        and subject in SUBJECTS
        and joints[name].fits(subject, SUBJECTS[subject])
        and kept.source == source_of(joints[name])
    }


def write(rows: Rows, path: Path = RECORD) -> None:
    """Keep the rows, a joint a line."""
    runs = sorted({kept.run for kept in rows.values()})
    numbers = {run: str(number) for number, run in enumerate(runs)}

    joints = []
    for joint in dict.fromkeys(name for name, _ in rows):
        each = [rows.get((joint, subject)) for subject in SUBJECTS]
        source = next(kept.source for kept in each if kept)
        cells = [LETTERS[kept.verdict] + numbers[kept.run] if kept else NONE for kept in each]
        joints.append(f"{json.dumps(joint)}: {json.dumps([source, ' '.join(cells)])}")
    parts = [
        '{"subjects": ' + json.dumps([*SUBJECTS]),
        ' "runs": [\n  ' + ",\n  ".join(map(json.dumps, runs)) + "\n ]",
        ' "joints": {\n  ' + ",\n  ".join(joints) + "\n }}\n",
    ]
    path.write_text(",\n".join(parts), encoding="utf-8")
