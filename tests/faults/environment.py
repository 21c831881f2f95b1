"""Environments in which packages are installed with the startup file.

A program for them says what came of it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from tests.hook.sandbox import REPOSITORY, Sandbox

TARGET = "mamba_ssm.ops.selective_scan_interface"
PACKAGES = ("jetson_mamba", "vendored_overrides")
STARTUP = REPOSITORY / "jetson_mamba" / "startup" / "jetson_mamba.pth"

# What a user's program does: it imports a target and calls what is in it.
PROGRAM = f"""
import {TARGET} as module
print(module.MambaInnerFn().forward("x", True)[0], module.__file__)
"""

# Takes the privileges of root from the process, so that permissions concern it too.
ORDINARY = """
import ctypes
ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())
"""


class Environment(Sandbox):
    """A virtual environment that holds the small `mamba_ssm`, this project and its startup file.

    ``copied`` gives it a copy of this project, to break; ``outer`` shows it the packages that the
    tests run with. Nothing is said to its interpreters through ``PYTHONPATH``.
    """

    def __init__(self, folder: Path, *, copied: bool = False, outer: bool = False) -> None:
        venv.create(folder / "venv", symlinks=True)
        self.python = str(folder / "venv" / "bin" / "python")
        (packages,) = folder.glob("venv/lib/python*/site-packages")
        (folder / "site").symlink_to(packages)
        super().__init__(folder)
        for package in PACKAGES:
            if copied:
                copy_package(package, self.site)
            else:
                (self.site / package).symlink_to(REPOSITORY / package)
        shutil.copy(STARTUP, self.site)
        if outer:
            folders = [each for each in sys.path if each.endswith("-packages")]
            (self.site / "outer.pth").write_text("\n".join(folders) + "\n")

    def uninstall(self) -> None:
        """Take this project and its startup file away again."""
        for name in (*PACKAGES, STARTUP.name):
            (self.site / name).unlink()

    def run(
        self,
        code: str,
        *,
        python: str | None = None,
        options: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        recorder: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run ``code`` in an interpreter of this environment."""
        return super().run(
            code,
            python=self.python if python in (None, sys.executable) else str(python),
            options=options,
            environment={"PYTHONPATH": "", **(environment or {})},
            recorder=recorder,
        )


def copy_package(package: str, folder: Path) -> None:
    """Copy one of this project's packages, without bundled copies, as an installer would."""
    ignored = shutil.ignore_patterns("__pycache__", "copies")
    shutil.copytree(REPOSITORY / package, folder / package, ignore=ignored)


def served(
    sandbox: Sandbox,
    before: str = "",
    *,
    options: tuple[str, ...] = (),
    environment: dict[str, str] | None = None,
) -> str:
    """The file that the program runs the target from, which must be a modified copy.

    The program must end well and print nothing else, warnings included.
    """
    printed = sandbox.output(
        before + PROGRAM, options=("-W", "error", *options), environment=environment
    )
    result, path = printed.split(maxsplit=1)
    assert result == "selective_scan_fwd"
    assert os.path.basename(path) != sandbox.interface.name
    return path


def in_cache(sandbox: Sandbox, path: str) -> bool:
    """Whether a copy was run from the file in the cache, not from memory."""
    return path.startswith(str(sandbox.cache)) and os.path.exists(path)


def files(folder: Path) -> list[str]:
    """The names of the files below a folder, bytecode left out."""
    return sorted(
        path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    )
