"""Runs the command line in an interpreter of its own, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests import interpreters
from tests.faults.environment import ORDINARY

REPOSITORY = Path(__file__).resolve().parent.parent.parent


def jetson_mamba(
    *arguments: str,
    folder: Path,
    path: tuple[Path, ...] = (),
    ordinary: bool = False,
    modules: tuple[str, ...] = interpreters.TORCH,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m jetson_mamba`` in ``folder``, with ``path`` before everything else.

    ``ordinary`` takes the privileges of root from it; ``modules`` are what is imported already.
    """
    code = f"{ORDINARY}from jetson_mamba.cli import main; raise SystemExit(main())"
    program = ("-c", code) if ordinary else ("-m", "jetson_mamba")
    variables = {
        **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
        "PYTHONPATH": os.pathsep.join(map(str, (*path, REPOSITORY))),
        "JETSON_MAMBA_CACHE": str(folder / "cache"),
        "COLUMNS": "80",
        # As where the environment is active.
        "PATH": f"{os.path.dirname(sys.executable)}{os.pathsep}{os.environ.get('PATH', '')}",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    # Another torch, or none, is not there already; nor is what Python is to do at its start.
    names = ("torch", "sitecustomize.py")
    if not any((each / name).exists() for each in path for name in names):
        return interpreters.run([*program, *arguments], env=variables, cwd=folder, modules=modules)
    return subprocess.run(
        [sys.executable, *program, *arguments],
        env=variables,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def kept() -> str:
    """The cache of copies of all of a run, for where copies are not what is looked at."""
    return str(interpreters.copies())


def shadow(folder: Path, module: str, code: str) -> Path:
    """A folder for the path, in which ``module`` is a package with that code."""
    (folder / "shadows" / module).mkdir(parents=True)
    (folder / "shadows" / module / "__init__.py").write_text(code)
    return folder / "shadows"
