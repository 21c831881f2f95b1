"""The page of the documentation that says what came of the imitations."""

from __future__ import annotations

import datetime
import json
import re
from pathlib import Path
from typing import Any

from tests.boards import roots, steps
from tests.boards.declared import BOARDS, Board

PAGE = roots.REPOSITORY / "docs" / "boards.md"
WIDTH = 120
RESULTS = roots.REPOSITORY / "docs" / "boards.json"
BEGINNING = """\
# Boards, imitated

<!-- Written by python -m tests.boards; not to be edited. -->

`make boards` builds a user space for aarch64 of the board's kind, lays down its files \
(`/etc/nv_tegra_release`, the name in the device tree), its pip and a torch of its version, and \
then runs the commands of [the first steps](first-steps.md) as they stand there. The processor is \
emulated (`qemu-user`, a Cortex-A76), so the times are many times a board's. pip leaves \
bytecode to be made when a module is imported, and torch computes with one thread: an emulator is \
slow at both. Those named x86-64 have the very Python that a JetPack has, and one the newest that \
there is, without a board's files: a copy of this machine's own, or of Debian's. \
`make boards BOARDS=jetpack-7 FROM=verify` goes on at a step.

| imitation | Python | torch | pip | Triton | mamba-ssm | verify | minutes | on |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""
ENDING = """
`doctor` ends with exit code 1 where a board's files are there, and is right: it finds that torch \
sees no GPU on a board.

What an imitation cannot show: anything on a GPU, so neither CUDA kernels nor Triton's, and no \
speed. Debian has no Python 3.8, 3.10 or 3.12 for aarch64: JetPack's Python is the nearest that it \
has. Torch is PyPI's build for aarch64, which has the code of that release and no CUDA, under the \
version of the vendor's. Under Python 3.14 and 3.15 it is the CUDA build that PyPI has for \
x86-64, under 3.15 of a release later than those that the tests are run with.
"""
STEPS = """
## What each step took and printed

The seconds are those of the imitation; of what a command printed, what says how it went, or the \
last line.
"""


def page(results: dict[str, Any]) -> str:
    """The text of the page."""
    rows = []
    for board in BOARDS:
        result = results.get(board.name)
        if result is None:
            rows.append(f"| {board.name} | {board.python} | {board.label} | | | | not run | | |")
            continue
        said = {step["command"]: step["last"] for step in result["steps"]}
        verify = next((text for command, text in said.items() if "verify" in command), "")
        imported = next((text for command, text in said.items() if "torch.__ver" in command), "")
        torch = imported.partition(" ")[0] or board.label
        release = re.search(r"mamba-ssm ([\w.]+)", verify)
        minutes = sum(step["seconds"] for step in result["steps"]) / 60
        rows.append(
            f"| {board.name} | {board.python} | {torch} | {board.pip or 'its own'} "
            f"| {board.triton or 'none'} | {release[1] if release else ''} "
            f"| {_came_to(verify, board, result)} | {minutes:.0f} "
            f"| {result['date']}{_in_one_go(result)} |"
        )
    parts = [_steps(board, results[board.name]) for board in BOARDS if board.name in results]
    return BEGINNING + "\n".join(rows) + "\n" + ENDING + STEPS + "\n".join(parts)


def _steps(board: Board, result: dict[str, Any]) -> str:
    """What each step of a board took, and what it printed."""
    rows = []
    for step in result["steps"]:
        last = " ".join(step["last"].replace("|", "\\|").split())
        last = last if len(last) <= WIDTH else f"{last[:WIDTH].rsplit(' ', 1)[0]} …"
        rows.append(f"| `{step['command']}` | {step['seconds']} | {step['code']} | {last} |")
    beginning = f"\n### {board.name}\n\n| command | seconds | exit code | printed |\n"
    return f"{beginning}| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n"


def ran(board: Board) -> bool:
    """Whether a board has been imitated here."""
    return log(board).exists()


def log(board: Board) -> Path:
    """What was printed while it was."""
    return roots.FOLDER / f"{board.name}.log"


def result(board: Board) -> dict[str, Any]:
    """What came of the last run of a board."""
    text = log(board).read_text(encoding="utf-8", errors="replace")
    done = steps.read(steps.commands(board.section), text)
    day = datetime.date.fromtimestamp(log(board).stat().st_mtime)
    told = {"date": day.isoformat(), "steps": [vars(step) for step in done]}
    again = dict.fromkeys(steps.resumed(text))
    return {**told, "resumed": [done[each].command for each in again if each < len(done)]}


def keep(results: dict[str, Any]) -> None:
    """Add to what is kept of all runs."""
    known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**known, **results}, indent=1, sort_keys=True) + "\n")


def passed(board: Board, result: dict[str, Any]) -> bool:
    """Whether every command was run, and ended well or is the doctor's."""
    done = result["steps"]
    wanted = steps.commands(board.section)
    ended = all(step["code"] == 0 or "doctor" in step["command"] for step in done)
    return [step["command"] for step in done] == wanted and ended


def _came_to(verify: str, board: Board, result: dict[str, Any]) -> str:
    """What verify found, and where the steps ended if that was before their end."""
    verdict = re.search(r"(All \d+ rows pass|\d+ of \d+ rows fail)", verify)
    told = [verdict[1]] if verdict else []
    unsupported = re.search(r"(\d+) more are not supported", verify)
    told += [f"{unsupported[1]} not supported by this torch"] if unsupported else []
    told += [] if passed(board, result) else [_failed(result)]
    return "; ".join(told) or "passed"


def _in_one_go(result: dict[str, Any]) -> str:
    """Where a run was taken up again after something had been mended."""
    again = [f"`{command}`" for command in result.get("resumed", ())]
    return f", taken up again at {', '.join(again)}" if again else ""


def _failed(result: dict[str, Any]) -> str:
    last = result["steps"][-1] if result["steps"] else {"command": "nothing", "code": 1}
    if last["code"] == -1:
        return f"stopped during `{last['command']}`"
    return f"`{last['command']}` failed ({last['code']})"
