"""What the startup file adds to an interpreter's start, beside the one that setuptools installs.

Each run is a fresh interpreter that executes the line of the ``.pth`` file and times it; the
two take turns. Prints medians in microseconds.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

import setuptools

import jetson_mamba

PROGRAM = """
import os, sys, time
line, folder = sys.argv[1:]
sys.path.append(folder)
start = time.perf_counter()
exec(line)
print(time.perf_counter() - start)
"""


def line_and_folder(path: Path, folder: Path) -> tuple[str, str]:
    """The import line of a startup file, and the folder of what it imports."""
    (line,) = (each for each in path.read_text().splitlines() if each.startswith("import "))
    return line, str(folder)


def seconds(line: str, folder: str) -> float:
    """How long the line takes in a fresh interpreter that has read no other startup file."""
    command = [sys.executable, "-I", "-S", "-c", PROGRAM, line, folder]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def measure(runs: int) -> tuple[float, float]:
    """The medians of this package's startup file and of setuptools', in seconds."""
    ours = Path(jetson_mamba.__file__).parent
    theirs = Path(setuptools.__file__).parent.parent
    files = (
        line_and_folder(ours / "startup" / "jetson_mamba.pth", ours.parent),
        line_and_folder(theirs / "distutils-precedence.pth", theirs),
    )
    found: tuple[list[float], list[float]] = ([], [])
    for _ in range(runs):
        for each, times in zip(files, found):
            times.append(seconds(*each))
    return statistics.median(found[0]), statistics.median(found[1])


if __name__ == "__main__":
    own, setuptools_own = measure(runs=101)
    print(f"jetson_mamba  {1e6 * own:6.0f} µs")
    print(f"setuptools    {1e6 * setuptools_own:6.0f} µs")
