"""The steps of a plan for each kind of tool, what is refused, and what a failure says."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from jetson_mamba.errors import CannotRun
from jetson_mamba.installing import work as works
from jetson_mamba.installing.plan import Plan, typed
from jetson_mamba.installing.situation import Torch
from jetson_mamba.installing.tools import Tool
from jetson_mamba.installing.work import Step, work
from jetson_mamba.report import installed, trial

INSTALL = ("pip", "install")
PIP = Tool("pip", "24.0", INSTALL)
OLD = Tool("pip", "20.0.2", INSTALL)
TO_COME = Tool("pip", "24.0", INSTALL, ("python", "-m", "ensurepip"))
UV = Tool("uv", "", ("uv", "pip", "install"))
TOOLS = (PIP, OLD, TO_COME, UV)
RECORDED, BUILT_IN_PLACE = Torch("2.3.0+vendor"), Torch("2.3.0+vendor", recorded=False)
HELD = ("torch==2.3.0+vendor", "numpy==1.26.4", "pydantic==2.0", "triton==3.1.0")
LESS = (HELD[0], HELD[3])


def planned(
    bring: tuple[str, ...] = (),
    *,
    torch: Torch = RECORDED,
    optional: tuple[str, ...] = (),
    mamba: str | None = None,
) -> Plan:
    return Plan("mamba-ssm", torch, (), bring, HELD, optional, mamba)


class Answers:
    """A tool that says what it would install, or why it cannot, by what it is asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.refused: dict[str, str] = {}
        self.installs = {"einops": "0.8", "triton==3.1.0": "3.1.0"}
        monkeypatch.setattr("jetson_mamba.installing.work.subprocess.run", self.run)

    def run(self, command: tuple[str, ...], **options: Any) -> Any:
        """Answer the question."""
        assert "--dry-run" in command
        self.asked.append(command)
        reasons = [reason for name, reason in self.refused.items() if name in command]
        asked = {name: version for name, version in self.installs.items() if name in command}
        names = {name.partition("==")[0]: version for name, version in asked.items()}
        told = [{"metadata": {"name": n, "version": v}} for n, v in names.items()]
        out = "" if command[0] == "uv" else json.dumps({"install": told})
        err = "".join(f"\x1b[1m + {n}\x1b[0m==\x1b[2m{v}\n" for n, v in names.items())
        error = "".join(f"ERROR: {each}\n" for each in reasons)

        class Done:
            returncode, stdout, stderr = bool(reasons), out, error or err

        return Done


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Answers:
    return Answers(monkeypatch)


def test_where_nothing_is_to_be_done_there_are_no_steps(answers: Answers) -> None:
    for tool in (None, *TOOLS):
        found = work(planned(), tool)
        assert (found.steps, found.packages) == ((), ())
    assert not answers.asked


@pytest.mark.parametrize("tool", TOOLS)
def test_what_is_missing_comes_before_the_build_that_imports_it(
    tool: Tool, answers: Answers
) -> None:
    found = work(planned(("einops",), mamba="mamba-ssm==2.2.4"), tool)
    *_, bring, build = found.steps
    assert bring.command == tool.bring("einops", *HELD)
    assert build.command == tool.build("mamba-ssm==2.2.4")
    assert dict(build.environment) == {
        "MAMBA_SKIP_CUDA_BUILD": "TRUE",
        "MAMBA_FORCE_BUILD": "TRUE",
    }
    assert not bring.environment and not any(each.may_fail for each in found.steps)
    assert [each.command for each in found.steps[:-2]] == [tool.first] * bool(tool.first)


@pytest.mark.parametrize("tool", [PIP, UV])
def test_one_that_tells_is_asked_and_says_what_comes_along(tool: Tool, answers: Answers) -> None:
    found = work(planned(("einops",), optional=("triton==3.1.0",)), tool)
    assert answers.asked == [tool.ask("triton==3.1.0", *HELD), tool.ask("einops", *HELD)]
    assert found.packages == ("triton 3.1.0", "einops 0.8")
    assert [each.may_fail for each in found.steps] == [True, False]
    assert not any(each.otherwise for each in found.steps)


@pytest.mark.parametrize("tool", [PIP, UV])
def test_what_else_is_held_gives_way_before_nothing_is_installed(
    tool: Tool, answers: Answers
) -> None:
    answers.refused["numpy==1.26.4"] = "they conflict"
    found = work(planned(("einops",)), tool)
    assert [each.command for each in found.steps] == [tool.bring("einops", *LESS)]
    assert "einops 0.8" in found.packages
    assert answers.asked == [tool.ask("einops", *HELD), tool.ask("einops", *LESS)]


@pytest.mark.parametrize("tool", [OLD, TO_COME])
def test_one_that_does_not_tell_tries_the_one_after_the_other(tool: Tool, answers: Answers) -> None:
    found = work(planned(("einops",), optional=("triton==3.1.0",)), tool)
    *_, triton, bring = found.steps
    assert triton.command == tool.bring("triton==3.1.0", *HELD) and triton.may_fail
    assert bring.otherwise == tool.bring("einops", *LESS) and not bring.may_fail
    assert not answers.asked and found.packages == ()


@pytest.mark.parametrize("tool", [PIP, UV])
def test_what_can_be_done_without_is_where_there_is_none(tool: Tool, answers: Answers) -> None:
    answers.refused["triton==3.1.0"] = "no matching distribution"
    plan = planned((), optional=("triton==3.1.0",), mamba="mamba-ssm==2.2.4")
    assert [each.command for each in work(plan, tool).steps] == [tool.build("mamba-ssm==2.2.4")]


@pytest.mark.parametrize("tool", [PIP, UV])
def test_where_no_way_is_left_the_reason_of_the_first_is_told(tool: Tool, answers: Answers) -> None:
    answers.refused.update({"numpy==1.26.4": "of numpy", "einops": "of einops"})
    with pytest.raises(CannotRun) as caught:
        work(planned(("einops",)), tool)
    message = f"{tool.kind} cannot tell what it would install beside torch 2.3.0+vendor: "
    assert str(caught.value).startswith(message + "of ")


@pytest.mark.parametrize("tool", [PIP, UV])
@pytest.mark.parametrize("name", ["torch", "Torch", "TORCH"])
def test_a_torch_is_never_brought_however_it_is_written(
    name: str, tool: Tool, answers: Answers
) -> None:
    answers.installs = {"einops": "0.8"}
    plan = planned((name, "einops"), torch=BUILT_IN_PLACE)
    assert work(plan, tool).packages == ("einops 0.8",)
    answers.installs[name] = "99"
    with pytest.raises(CannotRun, match=r"would replace torch 2\.3\.0\+vendor by 99 to install"):
        work(plan, tool)


def test_a_torch_without_a_record_beside_a_pip_that_does_not_tell_needs_a_newer_pip() -> None:
    with pytest.raises(CannotRun) as caught:
        work(planned(("einops",), torch=BUILT_IN_PLACE), OLD)
    message = str(caught.value)
    assert "pip 20.0.2 cannot say beforehand" in message
    assert message.endswith("install --upgrade pip")
    # What is optional is not tried for then, and a build alone changes no torch.
    plan = planned((), torch=BUILT_IN_PLACE, optional=("triton==3.1.0",), mamba="mamba-ssm==2.2.4")
    assert [each.command for each in work(plan, OLD).steps] == [OLD.build("mamba-ssm==2.2.4")]


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-S", "-c", code)


def test_a_step_runs_with_its_variables_and_asks_nothing(tmp_path: Path) -> None:
    code = "import os, sys; assert os.environ['GIVEN'] == 'this'; assert not sys.stdin.read()"
    assert works.carry_out(Step(python(code), (("GIVEN", "this"),))) is None
    assert works.carry_out(Step(python(code), (("GIVEN", "other"),))) is not None


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("ERROR: no such thing\\nWARNING: more", "no such thing"),
        ("Looking\\n\\x1b[31merror\\x1b[0m: it conflicts\\nlast", "it conflicts"),
        ("first\\nthe last line\\n\\n", "the last line"),
        (
            "resolving\\n  \\u00d7 No solution:\\n  \\u2570 because",
            "\u00d7 No solution: \u2570 because",
        ),
        ("", "it ended with 3"),
    ],
)
def test_what_fails_says_why_in_one_line(output: str, reason: str) -> None:
    code = f"import sys; sys.stdout.reconfigure(encoding='utf-8'); print('{output}', end='')"
    failing = python(f"{code}; sys.exit(3)")
    assert works.carry_out(Step(failing)) == reason
    assert works.carry_out(Step(failing, may_fail=True)) is None
    passing = python("pass")
    assert works.carry_out(Step(failing, otherwise=passing)) is None
    assert works.carry_out(Step(failing, otherwise=failing)) == reason


def test_what_is_said_goes_where_it_is_wanted(tmp_path: Path) -> None:
    said = tmp_path / "said"
    with said.open("wb") as file:
        step = Step(python("print('words'); raise SystemExit(2)"))
        assert works.carry_out(step, file.fileno()) == "it ended with 2"
    assert said.read_text() == "words\n"


@pytest.mark.parametrize("now", ["2.3.0+vendor", "2.4.0", None])
def test_afterwards_torch_must_be_what_it_was(
    now: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Known:
        version = now

    monkeypatch.setattr(installed, "distributions", lambda *_: [Known] * (now is not None))
    monkeypatch.setattr(trial, "in_a_process", lambda: ("2.2.4", None))
    expected: tuple[str | None, str | None] = (None, f"torch was 2.3.0+vendor, and is {now} now")
    if now is None:
        expected = (None, "torch was 2.3.0+vendor, and is none now")
    if now == RECORDED.version:
        expected = ("2.2.4", None)
    assert works.try_it(planned()) == expected
    # pip had no record of it before either.
    assert works.try_it(planned(torch=BUILT_IN_PLACE)) == ("2.2.4", None)


def test_a_command_can_be_typed_as_it_is_shown() -> None:
    step = Step(("pip", "install", "transformers<5"), (("A", "1"), ("B", "2")))
    assert str(step) == typed(step.command, {"A": "1", "B": "2"})
    assert str(step) == "A=1 B=2 pip install 'transformers<5'"
    assert shlex.split(str(step))[2:] == list(step.command)
