"""Carries a plan out: asks the tool what it would do, runs its commands, tries the result."""

from __future__ import annotations

import json
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Iterator

from jetson_mamba import advice
from jetson_mamba.errors import CannotRun
from jetson_mamba.installing.plan import WITHOUT_COMPILING, Plan, typed
from jetson_mamba.installing.tools import Tool
from jetson_mamba.report import installed, trial

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True)
class Step:
    """A command, the variables that it needs, and the one that is run where it fails.

    ``may_fail`` says that what it brings can be done without.
    """

    command: tuple[str, ...]
    environment: tuple[tuple[str, str], ...] = ()
    may_fail: bool = False
    otherwise: tuple[str, ...] = ()

    def __str__(self) -> str:
        return typed(self.command, dict(self.environment))


@dataclass(frozen=True)
class Work:
    """The steps of a plan, and what comes along as far as the tool tells: "name version"."""

    plan: Plan
    steps: tuple[Step, ...]
    packages: tuple[str, ...]


class NotToBeHad(Exception):
    """What a tool was asked for cannot be installed; the message is its reason."""


def work(plan: Plan, tool: Tool | None) -> Work:
    """The steps that a tool carries a plan out with.

    Raises :class:`CannotRun` where it cannot tell, and where torch would be replaced.
    """
    if tool is None:  # and nothing to do, which the plan has seen to
        return Work(plan, (), ())
    if plan.bring and not plan.torch.recorded and not tool.tells:
        raise CannotRun(
            f"pip has no record of this torch, and pip {tool.version} cannot say beforehand "
            f"whether it would bring another; upgrade it: {advice.pip()} install --upgrade pip"
        )
    steps = [Step(tool.first)] if tool.first else []
    packages: list[str] = []
    if plan.optional and (plan.torch.recorded or tool.tells):
        command = tool.bring(*plan.optional, *plan.held)
        if tool.tells and not tool.first:
            try:
                packages += _told(tool, (*plan.optional, *plan.held), plan)
                steps.append(Step(command, may_fail=True))
            except NotToBeHad:
                pass
        else:
            steps.append(Step(command, may_fail=True))
    if plan.bring:
        asked = (*plan.bring, *plan.held)
        # What else is held gives way before nothing can be installed at all.
        less = (*plan.bring, *(each for each in plan.held if not _is_other(each)))
        if tool.tells and not tool.first:
            try:
                packages += _told(tool, asked, plan)
            except NotToBeHad as reason:
                try:
                    packages += _told(tool, less, plan)
                except NotToBeHad:
                    raise CannotRun(
                        f"{tool.kind} cannot tell what it would install beside torch "
                        f"{plan.torch.version or 'unknown'}: {reason}"
                    ) from None
                asked = less
            steps.append(Step(tool.bring(*asked)))
        else:
            otherwise = tool.bring(*less) if less != asked else ()
            steps.append(Step(tool.bring(*asked), otherwise=otherwise))
    if plan.mamba:
        steps.append(Step(tool.build(plan.mamba), tuple(WITHOUT_COMPILING.items())))
    if steps == [Step(tool.first)]:
        steps = []
    return Work(plan, tuple(steps), tuple(dict.fromkeys(packages)))


def _is_other(requirement: str) -> bool:
    return requirement.startswith(("numpy==", "pydantic=="))


def carry_out(step: Step, output: int | None = None) -> str | None:
    """Run a step; the reason in one line where it fails.

    ``output`` is a file descriptor that gets what the tool says; without one nothing shows it.
    """
    for command in (step.command, *([step.otherwise] if step.otherwise else [])):
        done = subprocess.run(
            command,
            env={**os.environ, **dict(step.environment)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if output is None else output,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode == 0 or step.may_fail:
            return None
        reason = _reason(done.stdout or "") or f"it ended with {done.returncode}"
    return reason


def try_it(plan: Plan) -> tuple[str | None, str | None]:
    """The version of mamba_ssm that runs a block in a process of its own, or why none does."""
    now = installed.distributions("torch", installed.search_path())
    if plan.torch.recorded and (not now or now[0].version != plan.torch.version):
        found = now[0].version if now else "none"
        return None, f"torch was {plan.torch.version}, and is {found} now"
    return trial.in_a_process()


def _told(tool: Tool, asked: tuple[str, ...], plan: Plan) -> list[str]:
    """What the tool would install, as "name version"."""
    done = subprocess.run(
        tool.ask(*asked),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        raise NotToBeHad(_reason(done.stderr) or _reason(done.stdout) or "no message")
    wanted = list(_of_uv(done.stderr) if tool.kind == "uv" else _of_pip(done.stdout))
    for name, version in wanted:
        if name.lower() == "torch":
            raise CannotRun(
                f"{tool.kind} would replace torch {plan.torch.version or 'unknown'} by {version} "
                f"to install {', '.join(plan.bring)}; nothing is changed"
            )
    return [f"{name} {version}" for name, version in wanted]


def _of_pip(report: str) -> Iterator[tuple[str, str]]:
    for each in json.loads(report)["install"]:
        yield each["metadata"]["name"], each["metadata"]["version"]


def _of_uv(told: str) -> Iterator[tuple[str, str]]:
    for line in ESCAPES.sub("", told).splitlines():
        match = re.match(r"\s*\+ ([\w.-]+)==(\S+)", line)
        if match:
            yield match[1], match[2]


def _reason(output: str) -> str:
    """The line of pip's or uv's words that says why."""
    lines = [line.strip() for line in ESCAPES.sub("", output).splitlines() if line.strip()]
    for line in lines:
        word, colon, reason = line.partition(":")
        if colon and word.lower() == "error":
            return reason.strip()
    # uv draws a tree, of which every line is a part.
    tree = next((index for index, line in enumerate(lines) if line[:1] in "\u00d7\u2570"), None)
    return " ".join(lines[tree:]) if tree is not None else lines[-1] if lines else ""
