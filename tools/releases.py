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


# Before it keeps a source distribution, pip asks its build backend for the metadata. Upstream's
# is made by a setup.py that imports torch; what the distribution says itself is the same.
BACKEND = """
import os, re, shutil, sys
__legacy__ = sys.modules[__name__]
def prepare_metadata_for_build_wheel(folder, settings=None):
    with open("PKG-INFO", encoding="utf-8") as opened:
        name = re.search("^Name: (.*)$", opened.read(), re.MULTILINE)[1]
    os.mkdir(os.path.join(folder, name + ".dist-info"))
    shutil.copy("PKG-INFO", os.path.join(folder, name + ".dist-info", "METADATA"))
    return name + ".dist-info"
"""


def release_path(version: str, package: str = "mamba-ssm") -> Path:
    """The folder that holds the Python package of that release, fetched if it is not there."""
    fetch({package: version})
    return _folder(package, version)


def fetch(wanted: dict[str, str]) -> None:
    """Have these versions of packages in :data:`FOLDER`; what is not there comes by one pip."""
    missing = {package: each for package, each in wanted.items() if not _there(package, each)}
    if not missing:
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=FOLDER) as temporary:
        _download(missing, temporary)
        for archive in Path(temporary).glob("*.tar.gz"):
            with tarfile.open(archive) as tar:
                tar.extractall(temporary, filter="data")
        for package, version in missing.items():
            folder = _folder(package, version)
            try:
                (Path(temporary) / f"{package.replace('-', '_')}-{version}").rename(folder)
            except OSError:
                if not folder.exists():  # else another process was faster
                    raise


def _folder(package: str, version: str) -> Path:
    return FOLDER / f"{package}-{version}"


def _there(package: str, version: str) -> bool:
    return _folder(package, version).exists()


def _download(wanted: dict[str, str], folder: str) -> None:
    with tempfile.TemporaryDirectory() as backend:
        place = Path(backend) / "setuptools"
        place.mkdir()
        (place / "__init__.py").touch()
        (place / "build_meta.py").write_text(BACKEND, encoding="utf-8")
        subprocess.run(
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--no-binary", ":all:", "--no-build-isolation", "--use-pep517"),
                *("--dest", folder, *(f"{package}=={each}" for package, each in wanted.items())),
            ],
            check=True,
            env={**os.environ, "PYTHONPATH": backend},
        )


def main() -> None:
    """Fetch every release of both packages."""
    wanted: list[dict[str, str]] = [{"mamba-ssm": version} for version in MAMBA_SSM]
    for each, version in zip(wanted, CAUSAL_CONV1D):
        each["causal-conv1d"] = version
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fetch, wanted))


if __name__ == "__main__":
    main()
