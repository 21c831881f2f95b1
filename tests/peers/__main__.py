"""Runs their tests: ``python -m tests.peers [--mamba PATH] [--causal-conv1d PATH]``.

The paths are checkouts of the two projects, whose ``tests`` are run. ``mamba_ssm`` is that of the
checkout, or of ``--release``; ``causal_conv1d`` is the stand-in. What is passed after ``--`` is
given to pytest. Nothing of theirs is kept here.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.peers.plugin import REFERENCES
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# Of Mamba-3, which no target is part of, and measurements that are no tests.
OTHERS = re.compile(r"mamba3|cute|tilelang|benchmark")
COUNTS = ("passed", "failed", "skipped", "errors")


def counts(output: str) -> dict[str, int]:
    """What the last line of pytest says."""
    summary = output.strip().rpartition("\n")[2]
    found = {name: re.search(rf"(\d+) {name.rstrip('s')}", summary) for name in COUNTS}
    return {name: int(match[1]) if match else 0 for name, match in found.items()}


def run(path: Path, package: Path | None, options: list[str]) -> subprocess.CompletedProcess[str]:
    """Run one file of theirs in a process with the hook."""
    paths = [str(each) for each in (package, REPOSITORY) if each is not None]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [
                *(sys.executable, "-W", "ignore", "-c"),
                # The hook is activated first, where no startup file has seen to it.
                "import sys, jetson_mamba, pytest; sys.exit(pytest.main(sys.argv[1:]))",
                *("-q", "-p", "tests.peers.plugin", "-p", "no:cacheprovider", "--tb=short"),
                *("--import-mode=importlib", "--rootdir", folder, "-c", os.devnull, str(path)),
                *options,
            ],
            # Not in the checkout, whose own causal_conv1d would be found before the stand-in.
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
            check=False,
        )


def main() -> int:
    """Print what became of each file; 1 if any test failed, or none ran."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    parser.add_argument("--mamba", type=Path, help="a checkout of state-spaces/mamba")
    parser.add_argument("--causal-conv1d", type=Path, help="one of Dao-AILab/causal-conv1d")
    parser.add_argument(
        "--release", help="the release of mamba-ssm to run in place of the checkout"
    )
    parser.add_argument("rest", nargs="*", help="options of pytest, after --")
    chosen = parser.parse_args()
    package = release_path(chosen.release) if chosen.release else chosen.mamba
    total = dict.fromkeys(COUNTS, 0)
    for checkout in filter(None, (chosen.causal_conv1d, chosen.mamba)):
        tests = (checkout / "tests").resolve()
        for path in sorted(tests.rglob("test_*.py")):
            if OTHERS.search(str(path.relative_to(tests))):
                continue
            own = (checkout / "causal_conv1d").resolve()
            options = [REFERENCES, str(own), *chosen.rest] if own.is_dir() else chosen.rest
            done = run(path, package and package.resolve(), options)
            found = counts(done.stdout)
            if not any(found.values()):
                found["errors"] = 1
            if found["failed"] or found["errors"]:
                print(done.stdout[-6000:], done.stderr[-2000:], sep="\n")
            shown = ", ".join(f"{found[name]} {name}" for name in COUNTS)
            print(f"{checkout.name}/{path.relative_to(checkout.resolve())}: {shown}", flush=True)
            total = {name: total[name] + found[name] for name in COUNTS}
    print("all: " + ", ".join(f"{total[name]} {name}" for name in COUNTS))
    return 1 if total["failed"] or total["errors"] or not total["passed"] else 0


if __name__ == "__main__":
    sys.exit(main())
