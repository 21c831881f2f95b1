"""Fetches the published sources that the tests run against.

They are kept in ``.releases`` at the top of the checkout (or where ``JETSON_MAMBA_RELEASES``
says) and never committed. ``python -m tools.releases`` fetches all of them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MAMBA_SSM = (
    "1.0.1",
    "1.1.0",
    "1.1.1",
    "1.1.2",
    "1.1.3.post1",
    "1.1.4",
    "1.2.0",
    "1.2.0.post1",
    "1.2.1",
    "1.2.2",
    "2.0.0",
    "2.0.1",
    "2.0.2",
    "2.0.3",
    "2.0.4",
    "2.1.0",
    "2.2.0",
    "2.2.1",
    "2.2.2",
    "2.2.3.post2",
    "2.2.4",
    "2.2.5",
    "2.2.6.post3",
    "2.3.0",
    "2.3.1",
    "2.3.2.post1",
)
# Published with files missing: nobody can import them.
INCOMPLETE = ("2.0.0", "2.0.1", "2.0.2")

CAUSAL_CONV1D = (
    "1.0.0",
    "1.0.1",
    "1.0.2",
    "1.1.0",
    "1.1.1",
    "1.1.2.post1",
    "1.1.3.post1",
    "1.2.0.post1",
    "1.2.0.post2",
    "1.2.1",
    "1.2.2.post1",
    "1.3.0.post1",
    "1.4.0",
    "1.5.0.post5",
    "1.5.0.post8",
    "1.5.1",
    "1.5.2",
    "1.5.3.post1",
    "1.6.0",
    "1.6.1",
    "1.6.2.post1",
    "1.7.0",
)

FOLDER = Path(
    os.environ.get("JETSON_MAMBA_RELEASES") or Path(__file__).resolve().parent.parent / ".releases"
)


def release_path(version: str, package: str = "mamba-ssm") -> Path:
    """The folder that holds the Python package of that release, fetched if it is not there."""
    folder = FOLDER / f"{package}-{version}"
    if not folder.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
            _download(package, version, temporary)
            (archive,) = Path(temporary).glob("*.tar.gz")
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
            (unpacked,) = (each for each in Path(temporary).iterdir() if each.is_dir())
            try:
                unpacked.rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise
    return folder


def _download(package: str, version: str, folder: str) -> None:
    skip = package.replace("-ssm", "").replace("-", "_").upper() + "_SKIP_CUDA_BUILD"
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--no-binary", ":all:", "--no-build-isolation", "--dest", folder),
            f"{package}=={version}",
        ],
        check=True,
        env={**os.environ, skip: "TRUE"},
    )


def main() -> None:
    """Fetch every release of both packages."""
    wanted = [(version, "mamba-ssm") for version in MAMBA_SSM]
    wanted += [(version, "causal-conv1d") for version in CAUSAL_CONV1D]
    with ThreadPoolExecutor(2) as pool:
        for folder in pool.map(lambda each: release_path(*each), wanted):
            print(folder)


if __name__ == "__main__":
    main()
