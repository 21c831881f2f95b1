"""What came of a mutant, beside what it means by itself."""

from __future__ import annotations

import math
import re
from enum import Enum
from typing import NamedTuple

from tests.mutants.probes import Answer, Numbers

TOLERANCE = 1e-4
WITHOUT_TRITON = "without triton"


class Verdict(Enum):
    """From harmless to worst; a mutant has the worst that any call of it has in any situation."""

    NOT_RUN = "does not run by itself"
    SERVED = "served, and equal to what the mutant itself means"
    LEFT = "left alone with a word"
    WORSE = "raises where the mutant itself runs"
    REFUSED = "core refused although its calls stand there"
    SILENT = "silently different"


MISSING = Answer(None, "it is not there", 0)
EXTENSIONS = ("selective_scan_cuda", "causal_conv1d")
FORBIDDEN = (Verdict.WORSE, Verdict.REFUSED, Verdict.SILENT)
ORDER = tuple(Verdict)


class Run(NamedTuple):
    """What one process found: the answers by the names of the calls, and its warnings.

    ``refused`` are the targets that stayed as they are installed, with the reasons.
    """

    answers: dict[str, Answer]
    warnings: list[str]
    refused: dict[str, str]


class Finding(NamedTuple):
    """A verdict, and where it comes from."""

    verdict: Verdict
    detail: str = ""


def judge(
    own: Run, hooked: dict[str, Run], target: str, public: tuple[str, ...], refusable: str | None
) -> Finding:
    """The worst of all calls that the mutant itself can make, in all situations.

    ``public`` are the functions of the target, and methods by the name of their class.
    """
    worst = Finding(Verdict.NOT_RUN, next((f"{a.raised}" for a in own.answers.values()), ""))
    for name, meant in own.answers.items():
        if meant.numbers is None:
            continue
        # What is behind the public functions may be named by any of them.
        function = name.split(" ", 1)[0].rstrip(",")
        words = Words(target, (function,) if function in public else (function, *public))
        for situation, run in hooked.items():
            if situation == WITHOUT_TRITON and " as " in name:
                continue  # what launches kernels by itself, past all that is dispatched
            found = run.answers.get(name) or run.answers.get("import") or MISSING
            finding = _of_a_call(meant.numbers, found, situation, run, words, refusable)
            if ORDER.index(finding.verdict) > ORDER.index(worst.verdict):
                worst = Finding(finding.verdict, f"{situation}: {name}: {finding.detail}")
    return worst


class Words(NamedTuple):
    """What says something of a call: it names the function, or the target as a whole."""

    target: str
    functions: tuple[str, ...]

    def spoken(self, said: str) -> bool:
        """Whether the text does."""
        names = "|".join(map(re.escape, self.functions))
        return bool(re.search(rf"{re.escape(self.target)}(?!\.?\w)|\b(?:{names})\b", said))


def _of_a_call(
    meant: Numbers,
    found: Answer,
    situation: str,
    run: Run,
    words: Words,
    refusable: str | None,
) -> Finding:
    word = next((each for each in run.warnings[: found.warned] if words.spoken(each)), "")
    if found.numbers is not None:
        error = distance(found.numbers, meant)
        if error <= TOLERANCE:
            return Finding(Verdict.LEFT if word else Verdict.SERVED, word)
        return Finding(Verdict.LEFT if word else Verdict.SILENT, f"off by {error:.2g}; {word}")
    said = f"{found.raised}; {word or 'no word'}"
    reason = run.refused.get(words.target)
    if reason is not None:
        refused = Verdict.LEFT if refusable and word else Verdict.REFUSED
        return Finding(refused, f"{reason}; {said}")
    # Whose calls cannot be found is told what is missing, as without the hook.
    if refusable and any(each in str(found.raised) for each in EXTENSIONS):
        return Finding(Verdict.LEFT, said)
    # Only where its own code cannot run may an argument be refused: by an error that names the
    # function, or by the op after a warning that the op serves.
    by_op = word and re.match(r"\w+: \w+: expected .* found ", str(found.raised))
    if situation == WITHOUT_TRITON and (by_op or words.spoken(str(found.raised))):
        return Finding(Verdict.LEFT, said)
    return Finding(Verdict.WORSE, said)


def distance(found: Numbers, meant: Numbers) -> float:
    """The largest error of a result, relative to the largest number of it."""
    if [shape for shape, _ in found] != [shape for shape, _ in meant]:
        return math.inf
    largest = 0.0
    for (_, ours), (_, theirs) in zip(found, meant):
        scale = max((abs(each) for each in theirs if math.isfinite(each)), default=0.0) or 1.0
        for one, other in zip(ours, theirs):
            both = math.isnan(one) and math.isnan(other)
            error = 0.0 if one == other or both else abs(one - other) / scale
            largest = max(largest, math.inf if math.isnan(error) else error)
    return largest
