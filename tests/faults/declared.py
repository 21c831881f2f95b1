"""Declares which fault a test injects. The table of the documentation is made from that."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any, Callable, NamedTuple, TypeVar

REPOSITORY = Path(__file__).resolve().parent.parent.parent
TABLE = REPOSITORY / "docs" / "faults.md"
# The modules that declare faults, and their headings.
SECTIONS = {
    "test_cache": "The cache of the copies",
    "test_processes": "Processes, threads and interpreters",
    "test_start": "How Python is started",
    "test_installation": "What is installed",
}
BEGINNING = """\
# When things go wrong

<!-- Written by python -m tests.faults from the tests; not to be edited. -->

Each row is a test, which injects the fault and checks what is said here: the program runs, or \
gets one clear message. A test that needs what a machine does not have, such as root or a \
free-threaded Python, is skipped there.
"""

Test = TypeVar("Test", bound=Callable[..., Any])


class Fault(NamedTuple):
    """Something that goes wrong, what the user of a program then sees, and the test's place."""

    section: str
    what: str
    sees: str
    test: str


_FAULTS: dict[str, Fault] = {}


def fault(section: str, what: str, sees: str) -> Callable[[Test], Test]:
    """Declare what a test injects; ``section`` is the ``__name__`` of the declaring module."""

    def declare(test: Test) -> Test:
        path = Path(test.__code__.co_filename).relative_to(REPOSITORY)
        declared = Fault(section.rpartition(".")[2], what, sees, f"{path}::{test.__name__}")
        if _FAULTS.setdefault(what, declared) != declared:
            raise ValueError(f"what: expected a fault that is declared once, found {what!r}")
        return test

    return declare


def table() -> str:
    """The text of ``docs/faults.md``."""
    parts = [BEGINNING]
    for module, heading in SECTIONS.items():
        import_module(f"tests.faults.{module}")
        parts.append(
            f"\n## {heading}\n\n| What goes wrong | What you see | Test |\n| --- | --- | --- |"
        )
        for each in _FAULTS.values():
            if each.section == module:
                path, _, name = each.test.partition("::")
                folder = Path(path).parent.name
                parts.append(f"\n| {each.what} | {each.sees} | `{folder}: {name}` |")
        parts.append("\n")
    return "".join(parts)
