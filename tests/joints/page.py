"""The table of the documentation, ``docs/joints.md``, from the verdicts that are kept."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Mapping

from tests.joints.declared import AREAS, joints
from tests.joints.pieces import Run
from tests.joints.record import Kept
from tests.joints.subjects import SUBJECTS
from tests.joints.verdicts import Verdict

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
as good as without, ? it was not run since the joint was written or changed. An empty cell is one \
that has no meaning.

`python -m tests.joints`, on a CPU: {passing} of {found} rows pass, of {rows} that there are. \
Each verdict is of a run, and says nothing of changes since; of {recorded} it is known which code \
they are of:

| run | rows | day | code | with |
| --- | --- | --- | --- | --- |
{runs}
Cells without a letter are of run {most}. The code is the commit that last changed what rows \
depend on, and a digest of it, which `python -m tests.joints --code` prints of the code at hand.

{nowhere}

The columns: {subjects}.
"""
UNKNOWN = "not recorded"


def _rows() -> int:
    return sum(
        joint.fits(subject, kind)
        for joint in joints().values()
        for subject, kind in SUBJECTS.items()
    )


def _letters(runs: Mapping[Run, int]) -> dict[Run, str]:
    """Each run's: the last day first, and of a day those whose code is known, most rows first."""
    ordered = sorted(runs, key=lambda run: (run.day, bool(run.code), runs[run]), reverse=True)
    return {run: _letter(number) for number, run in enumerate(ordered)}


def _letter(number: int) -> str:
    more, last = divmod(number, 26)
    return (_letter(more - 1) if more else "") + chr(ord("a") + last)


def page(found: Mapping[tuple[str, str], Kept]) -> str:
    """The text of the page, from the verdict of each joint and subject that was run."""
    counts = Counter(kept.run for kept in found.values())
    letters = _letters(counts)
    most = max(counts, key=lambda run: counts[run], default=None)
    right = {name for (name, _), kept in found.items() if kept.verdict is Verdict.RIGHT}
    never = [name for name in dict.fromkeys(name for name, _ in found) if name not in right]
    numbers = [str(number) for number in range(1, len(SUBJECTS) + 1)]
    columns = ", ".join(f"{number} {name}" for number, name in zip(numbers, SUBJECTS))
    parts = [
        BEGINNING.format(
            passing=sum(kept.verdict.passes for kept in found.values()),
            found=len(found),
            rows=_rows(),
            recorded=sum(count for run, count in counts.items() if run.code),
            runs="".join(
                f"| {letter} | {counts[run]} | {run.day} | {_code(run)} | {run.libraries} |\n"
                for run, letter in letters.items()
            ),
            most=letters[most] if most else "a",
            nowhere=(
                f"Right nowhere, with the hook or without: {', '.join(never)}."
                if never
                else "Each joint that was run is right somewhere."
            ),
            subjects=columns,
        )
    ]

    def sign(name: str, subject: str) -> str:
        kept = found.get((name, subject))
        if kept is None:
            return "?" * joints()[name].fits(subject, SUBJECTS[subject])
        return SIGNS[kept.verdict] + ("" if kept.run == most else f" {letters[kept.run]}")

    for area, heading in AREAS.items():
        parts.append(
            f"\n## {heading}\n\n| | {' | '.join(numbers)} |\n|{' --- |' * (len(numbers) + 1)}\n"
        )
        for name, joint in joints().items():
            if joint.area == area:
                parts.append(f"| {name} | {' | '.join(sign(name, each) for each in SUBJECTS)} |\n")
    return "".join(parts)


def _code(run: Run) -> str:
    return f"{run.commit or 'no commit'} ({run.code})" if run.code else UNKNOWN
