"""What the hook adds to ``import mamba_ssm`` with a warm cache.

Fresh interpreters take turns: with the hook, and without it but with empty modules in place of
the compiled extensions, so that upstream's own files can be imported at all. Prints the medians
and the ratio of each pair. ``python -m benchmarks.import_time [RUNS]``, with a ``mamba_ssm``
that can be imported.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROGRAM = """
import time
start = time.perf_counter()
if {hook}:
    import jetson_mamba
import mamba_ssm
print(time.perf_counter() - start)
"""


def seconds(hook: bool, environment: dict[str, str]) -> float:
    """How long the import takes in a fresh interpreter."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM.format(hook=hook)]
    mode = "on" if hook else "off"
    return float(
        subprocess.run(
            command,
            check=True,
            capture_output=True,
            env={**os.environ, **environment, "JETSON_MAMBA": mode},
        ).stdout
    )


def measure(runs: int) -> list[float]:
    """The ratio with the hook to without it, in each of ``runs`` pairs; prints the medians."""
    with tempfile.TemporaryDirectory() as folder:
        stubs = Path(folder) / "stubs"
        stubs.mkdir()
        for name in ("selective_scan_cuda", "causal_conv1d_cuda"):
            (stubs / f"{name}.py").touch()
        path = os.pathsep.join((str(stubs), os.environ.get("PYTHONPATH", "")))
        environment = {"PYTHONPATH": path, "JETSON_MAMBA_CACHE": str(Path(folder) / "cache")}
        for hook in (True, False):  # fills the caches of both
            seconds(hook, environment)
        pairs = [(seconds(True, environment), seconds(False, environment)) for _ in range(runs)]
    with_hook, without = (statistics.median(times) for times in zip(*pairs))
    print(f"with the hook {with_hook:.3f} s, without {without:.3f} s")
    return [ours / theirs for ours, theirs in pairs]


if __name__ == "__main__":
    ratios = measure(int(sys.argv[1]) if len(sys.argv) > 1 else 11)
    median = statistics.median(ratios)
    print(f"ratio: median {median:.3f}, from {min(ratios):.3f} to {max(ratios):.3f}")
