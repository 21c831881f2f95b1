"""Where the functions that look for a symptom register themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator, NamedTuple, TypeVar

from jetson_mamba.report.facts import Facts
from jetson_mamba.report.trial import BUSY, NO_ANSWER

__all__ = ["BUSY", "NO_ANSWER", "Cause", "Finding", "findings", "finds"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    ``symptom`` is the name of its entry in the documentation, ``message`` the words that people
    see. ``what``, ``why``, ``command`` and ``option`` are a line each; the command is empty where
    there is nothing to do. ``cured`` says that the hook, which is active, gets around it: then
    nothing has to be done, and ``option`` is what would remove the cause. ``compiles`` says that
    the option compiles CUDA, which takes long.
    """

    symptom: str
    message: str
    what: str
    why: str
    command: str
    cured: bool
    option: str
    compiles: bool


class Cause(NamedTuple):
    """What a detector has found. ``command`` removes the cause; ``served`` says that the hook
    gets around it where it is active, ``compiles`` that the command compiles CUDA. ``seen`` are
    the words that people see here, where the symptom's are an example of them.
    """

    what: str
    why: str
    command: str
    served: bool = False
    compiles: bool = False
    seen: str = ""


Detector = Callable[[Facts], Iterator[Cause]]
Found = TypeVar("Found", bound=Detector)
# The words of each symptom, and what finds its causes: several detectors may share one.
SYMPTOMS: dict[str, str] = {}
DETECTORS: list[tuple[str, Detector]] = []


def finds(symptom: str, message: str) -> Callable[[Found], Found]:
    """Register a function that looks for a symptom in the facts."""

    def register(detector: Found) -> Found:
        if SYMPTOMS.setdefault(symptom, message) != message:
            raise ValueError(f"{symptom}: expected the words {SYMPTOMS[symptom]!r}")
        DETECTORS.append((symptom, detector))
        return detector

    return register


def findings(facts: Facts) -> tuple[Finding, ...]:
    """Everything that is wrong."""
    found = []
    for symptom, detector in DETECTORS:
        for cause in detector(facts):
            cured = cause.served and facts.served
            command, option = ("", cause.command) if cured else (cause.command, "")
            if cause.served and not facts.hook.active:
                off = facts.hook.mode == "off"
                command = "unset JETSON_MAMBA" if off else "jetson-mamba enable"
            seen = cause.seen or SYMPTOMS[symptom]
            compiles = cause.compiles and bool(option)
            found.append(
                Finding(symptom, seen, cause.what, cause.why, command, cured, option, compiles)
            )
    return tuple(found)
