"""How to make an environment that sees the torch of the system, where nothing can be installed."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata
from importlib.util import find_spec

from jetson_mamba import advice

FOLDER = "~/mamba"
BIN = f"{FOLDER}/bin"


def own(managed: str) -> str:
    """What to do where ``managed`` says that the system's packages are not to be touched."""
    return (
        f"this Python's packages are the system's, and pip may not add to them ({managed}); make "
        f"an environment that sees them, torch among them, and install there: {make()}"
    )


def make() -> str:
    """The command that makes an environment that sees the system's torch, and installs there."""
    parts = ["sudo apt install python3-venv"] if find_spec("ensurepip") is None else []
    parts.append(f"{shlex.quote(sys.executable)} -m venv --system-site-packages {FOLDER}")
    try:
        metadata.version("jetson-mamba")
    except metadata.PackageNotFoundError:  # on the path as it lies: not seen there
        _, place = advice.origin()
        parts.append(f"{BIN}/python -m pip install {shlex.quote(place or advice.HERE)}")
    parts.append(f"{BIN}/python -m jetson_mamba install")
    return " && ".join(parts)


def without_pip() -> str:
    """What to do where there is neither pip nor what could bring it."""
    package = "python3-venv" if sys.prefix != sys.base_prefix else "python3-pip"
    return f"{sys.executable} has no pip, and there is no uv: sudo apt install {package}"
