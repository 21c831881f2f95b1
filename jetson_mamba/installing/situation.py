"""Finds out what the installer has to fit in with, such as the torch that is installed."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

from jetson_mamba import advice
from jetson_mamba.installing.tools import Tool, tool
from jetson_mamba.report import installed, trial
from jetson_mamba.report.machine import Machine, machine

# The modules that a plan asks after, by the names that pip knows.
ASKED = {
    "setuptools": "setuptools",
    "wheel": "wheel",
    "packaging": "packaging",
    "einops": "einops",
    "transformers": "transformers",
    "huggingface_hub": "huggingface-hub",
    "triton": "triton",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "mamba_ssm": "mamba-ssm",
}
ASK_TORCH = (
    "import json, torch; print('told', json.dumps([str(torch.__version__), torch.version.cuda, "
    "bool(torch.cuda.is_available())]))"
)


@dataclass(frozen=True)
class Torch:
    """The torch that is there.

    ``recorded`` says that pip knows of it; ``cuda`` is the CUDA that it was built for, None for a
    build without; ``gpu`` says that it sees one; ``triton`` is the requirement of its metadata, as
    far as that holds on this machine. ``error`` says why it cannot be imported, if so.
    """

    version: str
    recorded: bool = True
    cuda: str | None = None
    gpu: bool = False
    triton: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Situation:
    """Everything that a plan depends on.

    ``packages`` has a version for each name of pip's that is installed, "" for an unknown one.
    ``managed`` is the file that says that the system's own packages are not to be touched, None in
    an environment of the user's. ``works`` says that the installed mamba_ssm runs a block as it is.
    """

    python: tuple[int, int]
    architecture: str
    torch: Torch | None
    packages: dict[str, str] = field(default_factory=dict)
    tool: Tool | None = None
    board: Machine | None = None
    managed: str | None = None
    works: bool = False


def situation(root: str = "/") -> Situation:
    """What is here; ``root`` is the top of the file system."""
    path = installed.search_path()
    packages = {}
    for module, name in ASKED.items():
        if installed.find(module, path) is not None:
            known = installed.distributions(name, path)
            packages[name] = known[0].version if known else _own_version(module, path)
    torch = _torch(path)
    works = torch is not None and torch.error is None and "mamba-ssm" in packages
    return Situation(
        python=sys.version_info[:2],
        architecture=platform.machine(),
        torch=torch,
        packages=packages,
        tool=tool(),
        board=machine(root),
        managed=advice.managed(),
        works=works and trial.failure() is None,
    )


def _torch(path: list[str]) -> Torch | None:
    if installed.find("torch", path) is None:
        return None
    known = installed.distributions("torch", path)
    told, error = _told(path)
    version, cuda, gpu = told or ("", None, False)
    return Torch(
        version=known[0].version if known else version,
        recorded=bool(known),
        cuda=cuda,
        gpu=gpu,
        triton=installed.triton_requirement(known),
        error=error,
    )


def _told(path: list[str]) -> tuple[Any, str | None]:
    """What torch says of itself in a process of its own; else why it cannot be imported."""
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", ASK_TORCH],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=trial.SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"{trial.NO_ANSWER} within {trial.SECONDS:.0f} s"
    # What torch loads may print as well, at its start or at its end.
    lines = [line for line in done.stdout.splitlines() if line.startswith("told ")]
    if done.returncode == 0 and lines:
        return json.loads(lines[-1][len("told ") :]), None
    last = done.stderr.strip().splitlines()
    return None, last[-1] if last else f"it ended with {done.returncode}"


def _own_version(module: str, path: list[str]) -> str:
    from jetson_mamba.report.packages import package

    return package(module, path).version or ""
