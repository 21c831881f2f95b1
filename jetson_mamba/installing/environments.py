"""What to do where nothing can be installed for this interpreter, or what installs is missing."""

from __future__ import annotations

import shlex
import sys
from importlib import metadata

from jetson_mamba import advice


def commands() -> str:
    """What to do where what the commands need is not installed, as in a checkout's folder."""
    file = advice.managed()
    if file:
        return own(file)
    return f"{advice.pip()} install {' '.join(map(shlex.quote, advice.COMMANDS))}"


def own(managed: str) -> str:
    """What to do where ``managed`` says that the system's packages are not to be touched."""
    return (
        f"this Python's packages are the system's, and pip may not add to them ({managed}); make "
        f"an environment that sees them, torch among them, and install there: {make()}"
    )


def make() -> str:
    """The command that makes an environment that sees the system's torch, and installs there."""
    parts = [advice.environment()]
    try:
        metadata.version("jetson-mamba")
    except metadata.PackageNotFoundError:  # on the path as it lies: not seen there
        _, place = advice.origin()
        parts.append(f"{advice.BIN}/python -m pip install {shlex.quote(place or advice.HERE)}")
    parts.append(f"{advice.BIN}/python -m jetson_mamba install")
    return " && ".join(parts)


def without_pip() -> str:
    """What to do where there is neither pip nor what could bring it."""
    return f"{sys.executable} has no pip, and there is no uv: {advice.bring_pip()}"
