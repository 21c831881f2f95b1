"""Measures what may take no longer than promised.

``python -m benchmarks.limits`` prints a line for each and ends with exit code 1 where one takes
longer. Of an idle machine: the tests, which share theirs, look at no clock.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, NamedTuple

from benchmarks import import_time, startup
from tests.cli.bare import Bare
from tests.cli.command import jetson_mamba
from tools.releases import release_path

# A look at fifty names that are no targets, and what the import system takes to look at each.
LOOK = """
import importlib.machinery, timeit, jetson_mamba
find = jetson_mamba._finder.find_spec
names = [f"torch.nn.modules.linear{n}" for n in range(50)]
own = min(timeit.repeat(lambda: [find(n, ["/"]) for n in names], number=20, repeat=9)) / 1000
theirs = importlib.machinery.BuiltinImporter.find_spec
least = min(timeit.repeat(lambda: [theirs(n, ["/"]) for n in names], number=20, repeat=9)) / 1000
print(own, least)
"""


class Measured(NamedTuple):
    """What was measured, and what it may take at most, in seconds."""

    what: str
    seconds: float
    limit: float


def measure() -> list[Measured]:
    """Everything that has a limit."""
    own, setuptools_own = startup.measure(runs=51)
    done = subprocess.run([sys.executable, "-c", LOOK], check=True, capture_output=True, text=True)
    look, least = map(float, done.stdout.split())
    return [
        Measured("the startup file", own, 1e-3),
        Measured("the startup file, in twice the time of setuptools'", own, 2 * setuptools_own),
        Measured("a look at another module's name", look, 20 * max(least, 1e-7)),
        Measured("import mamba_ssm beyond import torch, caches warm", beyond_torch(), 0.5),
        *doctors(),
    ]


def beyond_torch() -> float:
    """What mamba_ssm takes of the processor, imported after torch."""
    pairs = import_time.measure(5, str(release_path("2.3.2.post1")))
    return statistics.median(hooked.mamba_ssm for hooked, _ in pairs)


def doctors() -> list[Measured]:
    """The doctor of an environment in which there is next to nothing, and of this one."""
    with tempfile.TemporaryDirectory() as folder:
        bare, here = Bare(Path(folder)), Path(folder)
        return [
            Measured("doctor without torch", fastest(lambda: bare.command("doctor")), 1.5),
            Measured("doctor", fastest(lambda: jetson_mamba("doctor", folder=here)), 5.0),
        ]


def fastest(command: Callable[[], object]) -> float:
    """The shortest of a few runs."""
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        command()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    found = measure()
    for each in found:
        told = "" if each.seconds <= each.limit else "  TOO LONG"
        print(f"{each.what:48} {1e3 * each.seconds:10.4f} of {1e3 * each.limit:10.4f} ms{told}")
    sys.exit(any(each.seconds > each.limit for each in found))
