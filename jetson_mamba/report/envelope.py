"""What every JSON document of the commands begins with."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping

import jetson_mamba
from jetson_mamba.report.machine import machine

# Raised when a key is taken away or means something else; a new key changes nothing for a reader.
EDITION = 1


def name(command: str) -> str:
    """What ``schema`` says in the documents of a command."""
    return f"jetson-mamba/{command}/{EDITION}"


def envelope(command: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A document: ``schema``, ``version`` of this package, ``machine``, then what was found."""
    begin: dict[str, Any] = {"schema": name(command), "version": jetson_mamba.__version__}
    if "machine" not in found:
        begin["machine"] = dataclasses.asdict(machine())
    return {**begin, **found}
