"""The boards that are imitated. Each says what it is imitated with."""

from __future__ import annotations

from typing import NamedTuple


class Board(NamedTuple):
    """An imitation.

    ``suite`` is Debian's, for the Python that it has; where there is none, a copy of this machine's
    own interpreter of that version is the system's, without emulation and without a board's files.
    ``section`` is the heading of the first steps that are taken; ``torch`` a release on
    PyPI, and ``label`` the version that it is given in place of PyPI's: that of the vendor's wheel,
    in whose record it stands without the leading zeros; ``triton`` is one that is there already;
    ``pip`` the board's own, and ``packages`` what else is there. ``machine`` is what the suite is
    for; where that is this one, nothing is emulated, and pip puts torch there as it comes.
    """

    name: str
    section: str
    suite: str
    python: str
    model: str
    l4t: str
    pip: str | None
    torch: str
    label: str
    triton: str | None = None
    packages: tuple[str, ...] = ()
    machine: str = "aarch64"


XAVIER = "NVIDIA Jetson Xavier NX Developer Kit"
ORIN = "NVIDIA Jetson AGX Orin Developer Kit"
THOR = "NVIDIA Jetson AGX Thor Developer Kit"
R35 = "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64"
R36 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64"
R38 = "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64"

BOARDS = (
    Board(
        *("jetpack-5", "JetPack 5", "bullseye", "3.9", XAVIER, R35, "20.0.2"),
        *("2.1.2", "2.1.0a0+41361538.nv23.06"),
        packages=("numpy==1.24.4", "setuptools==45.2.0"),
    ),
    Board(
        *("jetpack-6-torch-2.4", "JetPack 6", "bookworm", "3.11", ORIN, R36, "22.0.2"),
        *("2.4.1", "2.4.0a0+07cecf4168.nv24.05"),
        packages=("numpy==1.26.4", "setuptools==59.6.0"),
    ),
    Board(
        *("jetpack-6-torch-2.8", "JetPack 6", "bookworm", "3.11", ORIN, R36, "22.0.2"),
        *("2.8.0", "2.8.0"),
        packages=("numpy==1.26.4", "setuptools==59.6.0"),
    ),
    Board(
        *("jetpack-7", "JetPack 7", "trixie", "3.13", THOR, R38, None, "2.9.1", "2.9.1"),
        triton="3.5.1",
    ),
    Board(
        *("x86-64-python-3.8", "JetPack 5", "", "3.8", "", "", "20.0.2"),
        *("2.1.2", "2.1.0a0+41361538.nv23.06"),
        packages=("numpy==1.24.4", "setuptools==45.2.0"),
    ),
    Board(
        *("x86-64-python-3.10", "JetPack 6", "", "3.10", "", "", "22.0.2"),
        *("2.4.1", "2.4.0a0+07cecf4168.nv24.05"),
        packages=("numpy==1.26.4", "setuptools==59.6.0"),
    ),
    Board(
        *("x86-64-python-3.12", "JetPack 7", "", "3.12", "", "", None, "2.11.0", "2.11.0"),
        triton="3.6.0",
    ),
    Board(
        *("x86-64-python-3.14", "JetPack 7", "forky", "3.14", "", "", None, "2.13.0", "2.13.0"),
        triton="3.7.1",
        machine="x86_64",
    ),
    Board(
        *("x86-64-python-3.15", "JetPack 7", "sid", "3.15", "", "", None, "2.15.0", "2.15.0"),
        triton="3.9.0",
        machine="x86_64",
    ),
)
