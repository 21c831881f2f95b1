"""What the hook adds to imports that it does not concern, such as that of ``torch``.

Fresh interpreters take turns, with the hook and without; each imports one of them. Prints the
medians of both, and of each pair's ratio; then the part of an import that is spent in the finder,
which a busy machine does not hide. ``python -m benchmarks.other_imports [PAIRS]``.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys

PACKAGES = ("torch", "transformers")
PROGRAM = "import time; start = time.process_time()\nimport {0}\nprint(time.process_time() - start)"
INSIDE = """
import time, jetson_mamba
spent = 0.0
find = type(jetson_mamba._finder).find_spec
def timed(self, *arguments):
    global spent
    start = time.perf_counter()
    try:
        return find(self, *arguments)
    finally:
        spent += time.perf_counter() - start
type(jetson_mamba._finder).find_spec = timed
start = time.perf_counter()
import {0}
print(spent / (time.perf_counter() - start))
"""


def printed(program: str, mode: str = "on") -> float:
    """The number that a fresh interpreter prints."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import jetson_mamba\n{program}"],
        check=True,
        stdout=subprocess.PIPE,
        env={**os.environ, "JETSON_MAMBA": mode},
    )
    return float(done.stdout)


def measure(package: str, pairs: int) -> list[tuple[float, float]]:
    """The processor's seconds of each pair of imports, with the hook and without."""
    program = PROGRAM.format(package)
    printed(program)  # for caches
    return [(printed(program), printed(program, "off")) for _ in range(pairs)]


def part(package: str) -> float:
    """The part of an import's time that is spent in the finder."""
    return printed(INSIDE.format(package))


def main(pairs: int) -> None:
    """Print the table."""
    for package in PACKAGES:
        found = measure(package, pairs)
        with_hook, without = (statistics.median(each) for each in zip(*found))
        ratio = statistics.median(one / other for one, other in found)
        print(
            f"import {package:12}  with {with_hook:6.3f} s  without {without:6.3f} s  "
            f"ratio {ratio:.4f}  in the finder {100 * part(package):.3f} %"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
