"""Carries out the commands of the first steps, as the documentation shows them."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.boards import roots
from tests.boards.declared import Board

FIRST_STEPS = roots.REPOSITORY / "docs" / "first-steps.md"
MARK = "jetson-mamba-step"
SECONDS = 5400
# What says how a command went, wherever it stands among its words; pip's own remarks do not.
VERDICT = re.compile(r"\d rows (pass|fail)|\d more are not supported|^wrong |^Nothing is wrong")
REMARK = re.compile(r"^(WARNING: |\[notice\])")


@dataclass(frozen=True)
class Step:
    """A command, how long it took, its exit code (-1: it was stopped), what it printed last."""

    command: str
    seconds: int
    code: int
    last: str


def commands(section: str, text: str | None = None) -> list[str]:
    """The commands under a heading of the first steps."""
    if text is None:
        text = FIRST_STEPS.read_text(encoding="utf-8")
    match = re.search(
        rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL
    )
    if match is None:
        raise ValueError(f"{FIRST_STEPS}: no section {section!r}")
    blocks = re.findall(r"```console\n(.*?)```", match[1], re.DOTALL)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


def carry_out(board: Board, root: Path, log: Path, first: int = 0) -> None:
    """Run a section's commands in one shell until one fails; ``log`` gets what they say.

    With ``first``, those before it are taken from the log of an earlier run, and of them only what
    changes the shell itself is done again.
    """
    given = commands(board.section)
    lines = ["cd ~/jetson-mamba"]
    lines += [command for command in given[:first] if command.startswith((". ", "export "))]
    for command in given[first:]:
        # The doctor finds that there is no GPU, which is so.
        go_on = ":" if "doctor" in command else "[ $code = 0 ] || exit $code"
        lines += [
            f"echo {MARK} begin $SECONDS",
            f"{command} 2>&1; code=$?",
            f"echo; echo {MARK} end $SECONDS $code",
            go_on,
        ]
    script = root / "tmp" / "first-steps.sh"
    script.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = _before(first, log) if first else ""
    with log.open("w", encoding="utf-8") as stream:
        stream.write(before)
        stream.flush()
        subprocess.run(
            roots.command(board, root, script.name),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            timeout=SECONDS,
            check=False,
        )


def place(given: list[str], text: str) -> int:
    """Which of the commands has a text in it; ValueError where none has."""
    for index, command in enumerate(given):
        if text in command:
            return index
    raise ValueError(f"{text!r}: expected a part of one of: {'; '.join(given)}")


def _before(first: int, log: Path) -> str:
    """What a log says of the steps before one, and that the run goes on there."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    begins = [match.start() for match in re.finditer(rf"^{MARK} begin ", text, re.MULTILINE)]
    if len(begins) < first:
        raise ValueError(f"{log}: tells of {len(begins)} steps, and {first} were to be before")
    kept = text[: begins[first]] if len(begins) > first else text
    return f"{kept}{MARK} resumed {first}\n"


def resumed(output: str) -> list[int]:
    """The steps from which on a run was taken up again, as a log tells."""
    return [int(each) for each in re.findall(rf"^{MARK} resumed (\d+)$", output, re.MULTILINE)]


def read(given: list[str], output: str) -> list[Step]:
    """The steps that a log tells of."""
    found = []
    output = re.sub(rf"^{MARK} resumed \d+\n", "", output, flags=re.MULTILINE)
    parts = re.split(rf"^{MARK} begin (\d+)\n", output, flags=re.MULTILINE)[1:]
    for command, began, told in zip(given, parts[::2], parts[1::2]):
        said, mark, ended = told.rpartition(f"{MARK} end ")
        seconds, code = ended.split()[:2] if mark else (began, "-1")
        lines = [line.strip() for line in (said if mark else told).splitlines() if line.strip()]
        lines = [line for line in lines if not REMARK.match(line)]
        verdicts = [line for line in lines if VERDICT.search(line)]
        verdict = " ".join(verdicts or lines[-1:]).replace(f"{roots.FOLDER}/", "")
        found.append(Step(command, int(seconds) - int(began), int(code), verdict))
    return found
