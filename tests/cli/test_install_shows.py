"""What ``jetson-mamba install`` shows of a plan.

What it asks, too, and what it says of what came of it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import sys
from typing import Any, Callable

import pytest
import typer
from rich.console import Console

from jetson_mamba.cli import install as command
from jetson_mamba.errors import CannotRun
from jetson_mamba.installing import plan as plans
from jetson_mamba.installing import work as works
from jetson_mamba.installing.plan import Choice, Plan
from jetson_mamba.installing.situation import Torch
from jetson_mamba.installing.work import Step, Work


def plan_of(*choices: Choice, notes: tuple[str, ...] = ()) -> Plan:
    return Plan("mamba-ssm==2.3.1", Torch("2.9.0"), choices, (), (), (), None, notes)


STEPS = (
    Step(("python", "-m", "pip", "install", "einops")),
    Step(("python", "-m", "pip", "install", "mamba-ssm"), (("MAMBA_SKIP_CUDA_BUILD", "TRUE"),)),
)
CHOICES = (
    Choice("torch", "2.9.0", "2.9.0", "it works"),
    Choice("einops", None, "0.8.2", "mamba-ssm asks for it"),
    Choice("causal-conv1d", "1.4.0", None, "it is not needed"),
    Choice("triton", None, None, "there is none for this machine"),
)
NOTES = ("The driver is [older] than CUDA 12.", "Torch stays.")
WHOLE = Work(plan_of(*CHOICES, notes=NOTES), STEPS, ("einops 0.8.2", "ninja 1.13"))
NOTHING = Work(plan_of(*CHOICES[:1]), (), ())


def shown(work: Work) -> list[str]:
    """The lines that are printed of a plan."""
    to = io.StringIO()
    command._show(Console(file=to, width=200, highlight=False, soft_wrap=True), work.plan, work)
    return to.getvalue().splitlines()


def test_every_choice_stands_in_a_row_with_what_is_there_what_will_be_and_why() -> None:
    lines = shown(WHOLE)
    rows = [" ".join(line.split()) for line in lines]
    above = " ".join(rows).partition(" torch ")[0].split()
    assert {*above} >= {"package", "is", "here", "will", "be", "why"}
    for row in (
        "torch 2.9.0 2.9.0 it works",
        "einops no 0.8.2 mamba-ssm asks for it",
        "causal-conv1d 1.4.0 1.4.0 it is not needed",
        "triton no not installed there is none for this machine",
    ):
        assert row in rows


def test_notes_what_comes_along_and_the_commands_follow() -> None:
    lines = shown(WHOLE)
    assert lines[-5:] == [
        *NOTES,
        "Comes along: einops 0.8.2, ninja 1.13",
        "  python -m pip install einops",
        "  MAMBA_SKIP_CUDA_BUILD=TRUE python -m pip install mamba-ssm",
    ]
    lines = shown(NOTHING)
    assert lines[-1] == "Nothing has to be installed."
    assert not any("Comes along" in line for line in lines)


@pytest.mark.parametrize("narrow", [40, 80])
def test_what_is_long_is_wrapped_where_people_read_it(narrow: int) -> None:
    to = io.StringIO()
    why = "a reason of many words that is longer than any line of a terminal would be"
    plan = plan_of(Choice("torch", "2.9.0", "2.9.0", why))
    command._show(Console(file=to, width=narrow), plan, Work(plan, (), ()))
    text = to.getvalue()
    assert all(len(line) <= narrow for line in text.splitlines())
    assert [word for word in text.split() if word in why.split()] != []


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What was carried out, and what comes of it; nothing of this machine is looked at."""
    told: dict[str, Any] = {"steps": [], "reasons": {}, "tried": ("2.3.1", None), "work": WHOLE}
    requirements = told["requirements"] = []

    def carry_out(step: Step, *output: int) -> str | None:
        told["steps"].append((step, *output))
        reason: str | None = told["reasons"].get(step.command[-1])
        return reason

    def planned(here: Any, requirement: str) -> Plan:
        requirements.append(requirement)
        found: Plan = told["work"].plan
        return found

    class Here:
        tool = "a tool"

    monkeypatch.setattr(command, "situation", Here)
    monkeypatch.setattr(plans, "plan", planned)
    monkeypatch.setattr(works, "work", lambda plan, tool: told["work"])
    monkeypatch.setattr(works, "carry_out", carry_out)
    monkeypatch.setattr(works, "try_it", lambda plan: told["tried"])
    return told


def run(**options: Any) -> int:
    """The exit code of the command."""
    given = {"requirement": "mamba-ssm", "yes": True, "dry_run": False, "verbose": False}
    try:
        command.install(**{**given, "as_json": False, **options})
    except typer.Exit as ended:
        return ended.exit_code
    return 0


def test_all_steps_are_done_and_what_runs_afterwards_is_told(
    done: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(requirement="mamba-ssm==2.3.1") == 0
    assert done["requirements"] == ["mamba-ssm==2.3.1"]
    assert done["steps"] == [(step,) for step in STEPS]
    assert "mamba_ssm 2.3.1 runs a block of each kind." in capsys.readouterr().out


def test_a_dry_run_does_nothing(done: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(dry_run=True, yes=False) == 0
    assert done["steps"] == []
    assert "runs a block" not in capsys.readouterr().out


def test_what_a_tool_says_is_shown_where_it_is_asked_for(done: dict[str, Any]) -> None:
    assert run(verbose=True) == 0
    assert done["steps"] == [(step, sys.stderr.fileno()) for step in STEPS]


@pytest.mark.parametrize("verbose", [False, True])
def test_a_step_that_fails_is_the_last_one(
    verbose: bool, done: dict[str, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    done["reasons"]["einops"] = "no network"
    assert run(verbose=verbose) == 1
    assert [step for step, *_ in done["steps"]] == [STEPS[0]]
    said = " ".join(capfd.readouterr().out.split())
    assert "this failed: python -m pip install einops: no network" in said
    assert ("--verbose shows all that was said" in said) is not verbose


def test_a_block_that_does_not_run_is_a_failure_with_the_way_on(
    done: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    done["tried"] = (None, "ImportError: no")
    assert run() == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "mamba_ssm does not work: ImportError: no; `jetson-mamba doctor` says more" in said


@pytest.mark.parametrize("reason", [None, "no network"])
def test_a_document_has_all_of_it(
    reason: str | None, done: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    done["reasons"]["mamba-ssm"] = reason
    assert run(as_json=True) == (0 if reason is None else 1)
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["schema"] == "jetson-mamba/install/1"
    assert found["requirement"] == "mamba-ssm==2.3.1" and found["torch"] == "2.9.0"
    assert found["choices"] == [dataclasses.asdict(each) for each in CHOICES]
    assert found["notes"] == list(NOTES)
    assert found["packages"] == list(WHOLE.packages)
    assert found["commands"] == [str(step) for step in STEPS]
    assert found["installed"] == ("2.3.1" if reason is None else None)
    assert (found["failure"] is None) is (reason is None)
    # People read beside it what they read without it.
    assert "Comes along" in printed.err and "Comes along" not in printed.out


def test_a_document_of_what_is_asked_is_refused(done: dict[str, Any]) -> None:
    with pytest.raises(CannotRun, match="expected --yes or --dry-run"):
        run(as_json=True, yes=False)
    assert run(as_json=True, yes=False, dry_run=True) == 0


def answered(answer: bool | BaseException) -> Callable[[str], bool]:
    def confirm(question: str) -> bool:
        if isinstance(answer, BaseException):
            try:
                raise answer
            except BaseException:
                raise typer.Abort  # noqa: B904
        return answer

    return confirm


def test_it_goes_on_where_the_answer_is_yes_alone(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(typer, "confirm", answered(False))
    assert run(yes=False) == 1
    assert "nothing is installed" in capsys.readouterr().err
    assert done["steps"] == []
    for wrong, error in ((EOFError(), CannotRun), (KeyboardInterrupt(), KeyboardInterrupt)):
        monkeypatch.setattr(typer, "confirm", answered(wrong))
        with pytest.raises(error):
            run(yes=False)
    assert done["steps"] == []
    monkeypatch.setattr(typer, "confirm", answered(True))
    assert run(yes=False) == 0
    assert len(done["steps"]) == len(STEPS)


def test_nothing_is_asked_where_nothing_is_to_do(
    done: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    done["work"] = NOTHING
    monkeypatch.setattr(typer, "confirm", answered(False))
    assert run(yes=False) == 0
