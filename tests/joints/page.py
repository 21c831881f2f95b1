"""The table of the documentation, ``docs/joints.md``, from the verdicts of a run of everything."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Mapping

from tests.joints.declared import AREAS, joints
from tests.joints.subjects import SUBJECTS
from tests.joints.verdicts import Judged, Verdict

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "joints.md"
SIGNS = {
    Verdict.RIGHT: "✓",
    Verdict.SAME_ERROR: "=",
    Verdict.REFUSED: "!",
    Verdict.WORSE: "**worse**",
    Verdict.SILENT: "**differs**",
}
BEGINNING = """\
# With torch and transformers

<!-- Written by make joints; not to be edited. -->

What one does with a model, each with every kind of model: ✓ the numbers are those that there are \
without the hook (of plain torch for mamba_ssm, which does not run without it), = it raises the \
same error as without, ! it is refused with what to do instead, **worse** or **differs** it is not \
as good as without, ? it was not run this time. An empty cell is one that has no meaning.

{run}

{nowhere}

The columns: {subjects}.
"""


def _rows() -> int:
    return sum(
        joint.fits(subject, kind)
        for joint in joints().values()
        for subject, kind in SUBJECTS.items()
    )


def page(found: Mapping[tuple[str, str], Judged], runs: Mapping[tuple[str, str], str]) -> str:
    """The text of the page, from the verdict of each joint and subject that was run, and its run.

    ``runs`` says of each row when it was run, and with what.
    """
    passing = sum(judged.verdict.passes for judged in found.values())
    run = (
        f"`python -m tests.joints`, on a CPU: {passing} of {len(found)} rows pass, of {_rows()} "
        "that there are. "
    )
    counts = Counter(runs[row] for row in found)
    run += " ".join(f"{count} rows on {each}." for each, count in counts.most_common())
    right = {name for (name, _), judged in found.items() if judged.verdict is Verdict.RIGHT}
    never = [name for name in dict.fromkeys(name for name, _ in found) if name not in right]
    nowhere = (
        f"Right nowhere, with the hook or without: {', '.join(never)}."
        if never
        else "Each joint that was run is right somewhere."
    )
    numbers = [str(number) for number in range(1, len(SUBJECTS) + 1)]
    columns = ", ".join(f"{number} {name}" for number, name in zip(numbers, SUBJECTS))
    parts = [BEGINNING.format(subjects=columns, run=run, nowhere=nowhere)]
    for area, heading in AREAS.items():
        parts.append(
            f"\n## {heading}\n\n| | {' | '.join(numbers)} |\n|{' --- |' * (len(numbers) + 1)}\n"
        )
        for name, joint in joints().items():
            if joint.area == area:
                signs = [
                    SIGNS[found[name, subject].verdict]
                    if (name, subject) in found
                    else "?" * joint.fits(subject, SUBJECTS[subject])
                    for subject in SUBJECTS
                ]
                parts.append(f"| {name} | {' | '.join(signs)} |\n")
    return "".join(parts)
