"""Judges a row by what came of it with the hook, beside what came without."""

from __future__ import annotations

import re
from enum import Enum
from math import isfinite
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tests.joints.declared import TRANSFORMERS, Joint
from tests.joints.measures import Wrong
from tests.joints.subjects import SUBJECTS
from tests.joints.workers import OWN_WORDS, Outcome
from tests.references.tolerance import relative_norm

# Two sound float32 implementations of two layers, and of their gradients, keep within these.
TOLERANCES = {
    # A block takes A and D in float32, whatever its weights are.
    torch.float64: 1e-6,
    torch.float32: 1e-4,
    torch.float16: 2e-2,
    torch.bfloat16: 1e-1,
}
# From float32, where what is computed is rounded to half precision on its way.
ROUNDED = 3e-2


# Beside the largest result: what float32 leaves of a zero.
NOTHING = 1e-6
# What was found, what was expected: how the ops refuse an argument.
CLEAR = re.compile(r"[\w.]+: expected .+ found ")
# In a traceback that torch makes part of its message, the name of a file is no advice.
PATH = re.compile(r"\S*/\S*")


class Verdict(Enum):
    """How a row with the hook stands to the same without it."""

    RIGHT = "right"
    SAME_ERROR = "same error as without"
    REFUSED = "refused, with what to do"
    WORSE = "worse"
    SILENT = "silently different"
    ABSENT = "not run: a package that it needs is not there"

    @property
    def passes(self) -> bool:
        """Whether nobody is worse off."""
        return self not in (Verdict.WORSE, Verdict.SILENT, Verdict.ABSENT)


class Judged(NamedTuple):
    """A verdict, and why."""

    verdict: Verdict
    why: str = ""


def judge(
    joint: Joint,
    subject: str,
    hooked: Outcome,
    without: Outcome,
    exact: Outcome | None,
    plain: Outcome,
) -> Judged:
    """``exact`` is the row without half precision, for joints that are rounded; ``plain`` what one
    step of training gives, for results that there are with the hook alone.
    """
    if hooked.error is not None:
        return _judge_error(joint, subject, hooked, without)
    # A twin is not mamba_ssm's text, which may warn of its own accord.
    theirs = SUBJECTS[subject] == TRANSFORMERS
    new = [said for said in hooked.warnings if theirs and _new(said, without.warnings)]
    if without.error is not None:
        expected = {name: plain.results[name] for name in hooked.results if name in plain.results}
        why = f"without the hook {without.error}"
        if not expected and not hooked.checked:
            return Judged(Verdict.WORSE, f"{why}, and nothing that its results are held against")
    else:
        expected, why = without.results, ""
        if expected.keys() != hooked.results.keys():
            names = sorted(expected.keys() ^ hooked.results.keys())
            return Judged(Verdict.WORSE, f"results that only one of both has: {names}")
    differing: dict[str, Any] = {}
    largest = max((_norm(value) for value in expected.values()), default=0.0)
    for name, value in expected.items():
        tolerance = joint.tolerance
        if exact is not None and exact.error is None:
            distance = _distance(value, exact.results[name])
            tolerance = max(joint.tolerance or ROUNDED, 1.5 * distance)
            found = _distance(hooked.results[name], exact.results[name], largest)
        else:
            found = _distance(hooked.results[name], value, largest)
            if tolerance is None:
                # What is rounded and has no other measure is that of the plain step in float32.
                tolerance = ROUNDED if joint.rounded else _tolerance(joint, subject, value)
        if not found <= tolerance:
            differing[name] = found
        if without.error is None:
            kinds = [
                each.results[name].dtype if isinstance(each.results[name], Tensor) else None
                for each in (hooked, without)
            ]
            if kinds[0] != kinds[1]:
                differing[f"dtype of {name}"] = f"{kinds[0]}, without {kinds[1]}"
    if differing:
        shown = dict(list(differing.items())[:4])
        facts = {
            name: (hooked.results[name], expected[name])
            for name in shown
            if name in expected and not isinstance(expected[name], Tensor)
        }
        said = [each for each in hooked.warnings if OWN_WORDS in each.lower()]
        verdict = Verdict.WORSE if said else Verdict.SILENT
        return Judged(verdict, f"off by {shown} of {len(expected)} {facts or ''}".strip())
    if new:
        return Judged(Verdict.WORSE, f"warns: {new[0]}")
    return Judged(Verdict.RIGHT, why)


def _judge_error(joint: Joint, subject: str, hooked: Outcome, without: Outcome) -> Judged:
    why = f"{hooked.error}: {hooked.message[:400]}"
    if hooked.error == without.error == ModuleNotFoundError.__name__:
        return Judged(Verdict.ABSENT, why)
    if hooked.error == without.error:
        return Judged(Verdict.SAME_ERROR, why)
    if without.error is not None:
        why += f" | without: {without.error}: {without.message[:200]}"
    if hooked.error == Wrong.__name__:
        return Judged(Verdict.SILENT, why)
    alone = SUBJECTS[subject] != TRANSFORMERS
    if without.error is not None:
        # Which error a twin raises says nothing of mamba_ssm's own text.
        if alone and without.error != Wrong.__name__:
            return Judged(Verdict.SAME_ERROR, why)
        if CLEAR.match(hooked.message):
            return Judged(Verdict.REFUSED, why)
    if joint.may_refuse and alone and OWN_WORDS in PATH.sub("", hooked.message).lower():
        return Judged(Verdict.REFUSED, why)
    return Judged(Verdict.WORSE, why)


def _new(said: str, known: tuple[str, ...]) -> bool:
    kind = said.partition(":")[0]
    return OWN_WORDS not in said.lower() and all(kind != each.partition(":")[0] for each in known)


def _tolerance(joint: Joint, subject: str, value: Any) -> float:
    if joint.tolerance is not None:
        return joint.tolerance
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    if value.dtype == torch.float64 and SUBJECTS[subject] == TRANSFORMERS:
        # Their own slow paths compute in float32 whatever the weights are.
        return TOLERANCES[torch.float32]
    return TOLERANCES[value.dtype]


def _norm(value: Any) -> float:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0.0
    return float(value.double().nan_to_num(0.0, 0.0, 0.0).norm())


def _distance(actual: Any, expected: Any, largest: float = 0.0) -> float:
    """Their relative norm; what is as small beside the largest result as rounding is no number.

    Of lists, results of one draw after another, it is the median, unless one is no number.
    """
    if isinstance(actual, list) and isinstance(expected, list):
        each = [_distance(*pair) for pair in zip(actual, expected)]
        same_length = len(actual) == len(expected)
        if not same_length or not all(map(isfinite, each)):
            return float("inf")
        return median(each) if each else 0.0
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        if not actual.numel() and actual.shape == expected.shape:
            return 0.0
        if actual.shape == expected.shape and expected.is_floating_point():
            # What is not a number, or infinite, is so in both.
            finite = expected.isfinite()
            if not torch.equal(actual[~finite].nan_to_num(), expected[~finite].nan_to_num()):
                return float("inf")
            actual, expected = actual[finite], expected[finite]
            scale = _norm(expected)
            if scale < NOTHING * largest and actual.shape == expected.shape:
                difference = float((actual.double() - expected.double()).norm())
                return 0.0 if difference < NOTHING * largest else float("inf")
        return relative_norm(actual, expected)
    return 0.0 if type(actual) is type(expected) and actual == expected else float("inf")
