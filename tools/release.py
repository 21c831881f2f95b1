"""Builds what is published, then runs it as a user would.

``python -m tools.release``: the bundled copies are made and checked, a wheel and an sdist are built
into ``dist``, the wheel is installed into a fresh environment, and there two releases of mamba-ssm
train a block of each kind: each target must run from a *bundled* copy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

from tools import bundle
from tools.releases import release_path

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ("2.2.4", "2.3.2.post1")
# Both kinds of block run, so that every target that they reach has been imported.
RUN = """
import torch
from mamba_ssm import Mamba, Mamba2
import jetson_mamba
for block in (Mamba(64), Mamba2(64, headdim=16, d_state=16)):
    block(torch.randn(2, 20, 64)).sum().backward()
for target in jetson_mamba.status().targets:
    if target.state == "modified":
        print(target.name, target.copy)
"""


def built(kind: str, folder: Path) -> Path:
    """A wheel or an sdist of the checkout."""
    call = f"from hatchling import build; print(build.build_{kind}({str(folder)!r}))"
    done = subprocess.run(
        [sys.executable, "-c", call], cwd=ROOT, check=True, capture_output=True, text=True
    )
    print(done.stderr, end="", file=sys.stderr)
    return folder / done.stdout.split()[-1]


def origins(wheel: Path, release: str) -> dict[str, str]:
    """Where the copy of each target that a release's blocks reach comes from.

    The environment holds the wheel; what mamba-ssm needs is the running interpreter's.
    """
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=False, symlinks=True)
        python = Path(folder) / "bin" / "python"
        pip = (sys.executable, "-m", "pip", "--python", os.fspath(python), "--quiet")
        subprocess.run([*pip, "install", "--no-deps", "--no-index", wheel], check=True)
        (site,) = Path(folder).glob("lib/python*/site-packages")
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("JETSON_MAMBA")}
        found = subprocess.run(
            [python, "-c", RUN],
            env={
                **environment,
                "JETSON_MAMBA_CACHE": os.path.join(folder, "cache"),
                "PYTHONPATH": os.fspath(release_path(release)),
            },
            cwd=folder,
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
    return dict(line.split() for line in found.stdout.splitlines())


def main() -> int:
    """Build into ``dist``; 1 where something is not as it is to be published."""
    if bundle.write(bundle.FOLDER) or bundle.check(bundle.FOLDER):
        return 1
    dist = ROOT / "dist"
    shutil.rmtree(dist, ignore_errors=True)
    dist.mkdir()
    wheel, sdist = built("wheel", dist), built("sdist", dist)
    wrong = 0
    for release in RELEASES:
        found = origins(wheel, release)
        for target, origin in found.items():
            print(f"mamba-ssm {release}: {target}: {origin}")
        wrong += not found or set(found.values()) != {"bundled"}
    for each in (wheel, sdist):
        print(f"{each.relative_to(ROOT)}: {each.stat().st_size:,} bytes")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
