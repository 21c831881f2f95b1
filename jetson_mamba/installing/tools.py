"""What can install packages into this environment: pip, a pip of elsewhere, or uv."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass

from jetson_mamba import advice
from jetson_mamba.releases.versions import at_least

REPORTS = (22, 2)  # pip's --dry-run and --report
FOR_OTHERS = (22, 3)  # pip's --python


@dataclass(frozen=True)
class Tool:
    """A program that installs packages.

    ``kind`` is "pip" or "uv"; ``command`` is what comes before its options; ``first`` is a command
    that has to be run once before it is there.
    """

    kind: str
    version: str
    command: tuple[str, ...]
    first: tuple[str, ...] = ()

    @property
    def tells(self) -> bool:
        """Whether it can be asked what it would do."""
        return self.kind == "uv" or at_least(self.version, *REPORTS)

    def bring(self, *requirements: str) -> tuple[str, ...]:
        """The command that installs what is missing of ``requirements``.

        A pip before 20.3 does not know the tags of the newest wheels, and would build their
        packages from source, with a compiler for Rust: an older release with a wheel will do.
        """
        if self.kind == "uv":
            return (*self.command, *requirements)
        return (*self.command, "--prefer-binary", *requirements)

    def ask(self, *requirements: str) -> tuple[str, ...]:
        """The command that says what that would install."""
        if self.kind == "uv":
            return (*self.command, "--dry-run", *requirements)
        return (*self.bring("--quiet", "--dry-run", "--report", "-"), *requirements)

    def build(self, requirement: str) -> tuple[str, ...]:
        """The command that installs one source distribution again, with what is here.

        Nothing that was kept is used: it may have been compiled for another torch.
        """
        alone = ("--no-build-isolation", "--no-deps")
        again = ["--force-reinstall", "--no-cache-dir"]
        if self.kind == "uv":
            name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
            again = ["--reinstall-package", name, "--no-cache"]
        return (*self.command, *alone, *again, requirement)


def tool(python: str = sys.executable) -> Tool | None:
    """What installs into the environment of this interpreter; None where nothing does.

    Its own pip if it has one; else, as in environments that uv has made, uv, another pip that can
    be told of it, or the pip that Python brings along.
    """
    if advice.has_pip():
        # "install" comes last, so that options of that command can follow.
        command = (python, "-m", "pip", "--disable-pip-version-check", "install")
        return Tool("pip", advice.version_of_pip(), command)
    uv = os.environ.get("UV") or shutil.which("uv")
    if uv:
        return Tool("uv", "", (uv, "pip", "install", "--python", python))
    pip = shutil.which("pip3") or shutil.which("pip")
    version = _answer(pip, "--version") if pip else ""
    match = re.match(r"pip ([\d.]+)", version)
    if pip and match and at_least(match[1], *FOR_OTHERS):
        command = (pip, "--python", python, "--disable-pip-version-check", "install")
        return Tool("pip", match[1], command)
    if advice.brings_pip():
        command = (python, "-m", "pip", "--disable-pip-version-check", "install")
        return Tool("pip", _bundled(), command, (python, "-m", "ensurepip"))
    return None


def _bundled() -> str:
    import ensurepip

    return ensurepip.version()


def _answer(*command: str) -> str:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return ""
    return done.stdout
