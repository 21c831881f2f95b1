"""What ``import mamba_ssm`` takes beyond ``import torch``, with the hook or without.

Fresh interpreters take turns: with the hook, and without it but with empty modules in place of
the compiled extensions, so that upstream's own files can be imported at all. Each imports torch
first, then mamba_ssm. Prints the medians, and of each pair the ratio. It is the processor's time
that is measured, which is the same on a busy machine. ``python -m benchmarks.import_time [RUNS]``,
with a ``mamba_ssm`` that can be imported.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

PROGRAM = """
from time import process_time as now
start = now()
if {hook}:
    import jetson_mamba
import torch
torch_there = now()
import mamba_ssm
print(torch_there - start, now() - torch_there)
"""


class Seconds(NamedTuple):
    """What the two imports take of the processor in a fresh interpreter, one after the other."""

    torch: float
    mamba_ssm: float


def seconds(hook: bool, environment: dict[str, str]) -> Seconds:
    """How long the imports take, with the hook or without."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(hook=hook)]
    mode = "on" if hook else "off"
    # Bytecode is among what is warm.
    known = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        env={**known, **environment, "JETSON_MAMBA": mode},
    )
    return Seconds(*map(float, done.stdout.split()))


def measure(runs: int, path: str) -> list[tuple[Seconds, Seconds]]:
    """What each of ``runs`` pairs takes, with the hook and without; mamba_ssm is on ``path``."""
    with tempfile.TemporaryDirectory() as folder:
        stubs = Path(folder) / "stubs"
        stubs.mkdir()
        for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
            (stubs / f"{name}.py").touch()
        environment = {
            "PYTHONPATH": os.pathsep.join((str(stubs), path)),
            "JETSON_MAMBA_CACHE": str(Path(folder) / "cache"),
            "PYTHONPYCACHEPREFIX": str(Path(folder) / "bytecode"),
        }
        for hook in (True, False):  # fills the caches of both
            seconds(hook, environment)
        return [(seconds(True, environment), seconds(False, environment)) for _ in range(runs)]


def line(name: str, values: list[float], unit: str = "") -> str:
    """The median of some values and how far they lie apart."""
    median = f"{statistics.median(values):.3f}{unit}"
    return f"{name}: median {median}, from {min(values):.3f} to {max(values):.3f}"


def report(pairs: list[tuple[Seconds, Seconds]]) -> list[str]:
    """The lines that are printed."""
    kinds = ("with the hook", "without")
    lines = []
    for kind, those in zip(kinds, zip(*pairs)):
        lines.append(line(f"import torch, {kind}", [each.torch for each in those], " s"))
        beyond = [each.mamba_ssm for each in those]
        lines.append(line(f"import mamba_ssm beyond it, {kind}", beyond, " s"))
    return [*lines, line("ratio of both", [sum(ours) / sum(theirs) for ours, theirs in pairs])]


if __name__ == "__main__":
    RUNS = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    print(*report(measure(RUNS, os.environ.get("PYTHONPATH", ""))), sep="\n")
