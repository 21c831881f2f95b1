"""Installs mamba-ssm into this environment without compiling it, and never touches its torch.

A board's torch comes from its vendor and cannot be had again from PyPI, so pip is told to keep
the version that is there, is asked what it would do before it does anything, and is refused
where that would replace torch.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from typing import IO

from jetson_mamba.errors import CannotRun
from jetson_mamba.report import installed

# What the build imports and what mamba_ssm imports: the module, and the name that pip knows.
NEEDED = {
    "setuptools": "setuptools",
    "wheel": "wheel",
    "packaging": "packaging",
    "einops": "einops",
    "transformers": "transformers",
    "huggingface_hub": "huggingface-hub",
}
WITHOUT_COMPILING = {"MAMBA_SKIP_CUDA_BUILD": "TRUE", "MAMBA_FORCE_BUILD": "TRUE"}
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


@dataclass(frozen=True)
class Step:
    """A command of pip, and the variables that it needs."""

    command: tuple[str, ...]
    environment: dict[str, str]

    def __str__(self) -> str:
        variables = [f"{name}={value}" for name, value in self.environment.items()]
        return " ".join([*variables, *map(shlex.quote, self.command)])


@dataclass(frozen=True)
class Plan:
    """What will be done. ``packages`` are those that come along, as pip resolved them."""

    requirement: str
    torch: str
    packages: tuple[str, ...]
    steps: tuple[Step, ...]


def plan(requirement: str) -> Plan:
    """The steps that install a requirement such as "mamba-ssm==2.2.4".

    Raises :class:`CannotRun` for a requirement of something else, without torch or pip, and
    where pip would replace torch.
    """
    if not re.fullmatch(r"mamba[-_.]ssm\s*([=<>!~]=?[^;@]*)?", requirement, re.IGNORECASE):
        raise CannotRun(
            f"{requirement}: expected mamba-ssm, or mamba-ssm and a version such as "
            "mamba-ssm==2.2.4"
        )
    path = installed.search_path()
    if installed.find("torch", path) is None:
        raise CannotRun(
            "torch is not installed, and mamba-ssm cannot be installed without it; install the "
            "torch for this machine (on a Jetson, the one for its JetPack)"
        )
    known = installed.distributions("torch", path)
    torch = known[0].version if known else "unknown"
    needed = {**NEEDED, "triton": installed.triton_requirement(path)}
    missing = [name for module, name in needed.items() if installed.find(module, path) is None]
    pinned = [*missing, f"torch=={torch}"] if known else missing
    packages = _resolved(pinned, torch) if missing else ()
    steps = [Step((*PIP, "install", *pinned), {})] if packages else []
    steps.append(
        Step(
            (
                *(*PIP, "install", "--no-build-isolation", "--no-deps", "--force-reinstall"),
                # pip may have kept a wheel that was compiled for another torch.
                *("--no-cache-dir", requirement),
            ),
            WITHOUT_COMPILING,
        )
    )
    return Plan(requirement, torch, packages, tuple(steps))


def carry_out(step: Step, output: IO[str]) -> bool:
    """Run a step, which writes to ``output``; whether it succeeded."""
    done = subprocess.run(
        step.command, env={**os.environ, **step.environment}, stdout=output, check=False
    )
    return done.returncode == 0


def imported() -> tuple[bool, str]:
    """Whether mamba_ssm can be imported in a new process; its version, or the reason."""
    code = "import jetson_mamba, mamba_ssm; print('version', mamba_ssm.__version__)"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    lines = (done.stdout if done.returncode == 0 else done.stderr).strip().splitlines()
    last = lines[-1] if lines else f"it ended with {done.returncode}"
    return done.returncode == 0, last[len("version ") :] if done.returncode == 0 else last


def _resolved(requirements: list[str], torch: str) -> tuple[str, ...]:
    """What pip would install for ``requirements``, as "name version"."""
    done = subprocess.run(
        [*PIP, "install", "--quiet", "--dry-run", "--report", "-", *requirements],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        if "no such option" in done.stderr:
            reason = "it is older than 22.2; upgrade it: python -m pip install --upgrade pip"
        raise CannotRun(f"pip cannot tell what it would install beside torch {torch}: {reason}")
    wanted = [each["metadata"] for each in json.loads(done.stdout)["install"]]
    for each in wanted:
        if each["name"].lower() == "torch":
            raise CannotRun(
                f"pip would replace torch {torch} by {each['version']} to install "
                f"{', '.join(requirements)}; nothing is changed"
            )
    return tuple(f"{each['name']} {each['version']}" for each in wanted)
