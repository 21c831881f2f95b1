"""The option ``--device`` of the commands that compute."""

from typing import Any, Optional

import typer

from jetson_mamba.demo.models import require
from jetson_mamba.errors import CannotRun
from jetson_mamba.releases import get_torch
from jetson_mamba.report.machine import machine

DEVICES = ("cpu", "cuda")
DEVICE = typer.Option(
    None,
    help="cpu or cuda. Default: cuda if torch sees a GPU.",
    show_default=False,
    autocompletion=lambda: list(DEVICES),
)


def torch_here() -> Any:
    """torch; where it is missing, CannotRun with the command that brings this machine's."""
    return require("torch", get_torch.command(machine().jetpack))


def device(name: Optional[str]) -> Any:
    """The ``torch.device`` of that name; without one, cuda where torch sees a GPU, else cpu.

    Raises CannotRun for any other name, and where torch or the GPU is missing.
    """
    if name not in (None, *DEVICES):
        raise CannotRun(f"--device {name}: expected cpu or cuda")
    torch = torch_here()
    if name == "cuda" and not torch.cuda.is_available():
        raise CannotRun("--device cuda: torch sees no GPU; `jetson-mamba doctor` says more")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
