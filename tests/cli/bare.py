"""An environment in which only the command runs. No torch, no pip, no mamba-ssm."""

from __future__ import annotations

import os
import re
import subprocess
import venv
from importlib import metadata
from pathlib import Path

from tests.cli.command import REPOSITORY


def closure(*names: str) -> set[str]:
    """The distributions, and all that they require here."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(name)
        waiting += [
            re.split(r"[^\w.-]", each, maxsplit=1)[0] for each in requires if "extra ==" not in each
        ]
    return found


class Bare:
    """A virtual environment; ``extra`` distributions are lent to it from this one."""

    def __init__(self, folder: Path, *extra: str) -> None:
        self.folder = folder
        venv.create(folder / "venv", symlinks=True)
        self.python = folder / "venv" / "bin" / "python"
        (self.site,) = (folder / "venv" / "lib").glob("python*/site-packages")
        for name in closure("typer", "rich", *extra):
            self.lend(name)
        self.environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("JETSON_MAMBA", "PYTHON", "PIP_"))
        }
        self.environment.update(
            PYTHONPATH=str(REPOSITORY),
            JETSON_MAMBA_CACHE=str(folder / "cache"),
            COLUMNS="200",
            OMP_NUM_THREADS="1",
            PATH=f"{self.python.parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        )
        program = self.python.parent / "jetson-mamba"
        program.write_text(f'#!/bin/sh\nexec {self.python} -m jetson_mamba "$@"\n')
        program.chmod(0o755)

    def lend(self, name: str) -> None:
        """Link a distribution's files into the environment."""
        distribution = metadata.distribution(name)
        tops = {Path(file).parts[0] for file in distribution.files or ()} - {"..", "__pycache__"}
        for top in tops:
            if not (self.site / top).exists():
                (self.site / top).symlink_to(Path(str(distribution.locate_file(top))))

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run its Python."""
        return subprocess.run(
            [str(self.python), *arguments],
            env={**self.environment, **environment},
            cwd=self.folder,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
            timeout=300,
        )

    def command(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run ``jetson-mamba`` in it."""
        return self.run("-m", "jetson_mamba", *arguments, **environment)
