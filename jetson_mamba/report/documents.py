"""What each command prints with ``--json``, as data without torch; ``keys`` says what it means."""

from __future__ import annotations

from dataclasses import dataclass

from jetson_mamba.report.changes import Change
from jetson_mamba.report.kept_copies import KeptCopy
from jetson_mamba.report.status import Backend, Selected, Target
from jetson_mamba.startup.files import StartupFile


@dataclass(frozen=True)
class VerifiedRow:
    """The relative norms of the errors of the output and of the worst gradient.

    ``failure`` is the error that was raised, if one was; ``unsupported`` says that it is torch's
    word that it has no such operation for this dtype on this device.
    """

    function: str
    size: str
    dtype: str
    forward: float | None
    backward: float | None
    worst: str | None
    tolerance: float
    passed: bool
    failure: str | None
    unsupported: bool


@dataclass(frozen=True)
class Verification:
    """What ``verify`` has found, of everything that ran."""

    device: str
    torch: str
    mamba_ssm: str
    passed: bool
    rows: tuple[VerifiedRow, ...]
    targets: tuple[Target, ...]
    selections: tuple[Selected, ...]
    backends: tuple[Backend, ...]


@dataclass(frozen=True)
class TimedRow:
    """How long a pass of a case takes, by backend.

    ``floor_microseconds`` is the fewest bytes over the rate of a copy, ``of_floor`` its share in
    the time of the fastest backend; 1 is the floor itself. A backend that is not available has no
    entry; one that raised has its error in ``failures``, "out of memory" where that was it.
    """

    op: str
    direction: str
    batch: int
    dim: int
    seqlen: int
    dtype: str
    layout: str
    floor_microseconds: float
    microseconds: dict[str, float]
    failures: dict[str, str]
    of_floor: float | None


@dataclass(frozen=True)
class TimedBackend:
    """A backend of an op: what it is made of, or, by dtype, why it does not serve here."""

    op: str
    name: str
    release: str
    unavailable: dict[str, str]


@dataclass(frozen=True)
class Timings:
    """What was measured, and on what. ``copy_rate`` is in bytes per microsecond."""

    device: str
    name: str
    jetson_mamba: str
    torch: str
    cuda: str | None
    driver: str | None
    copy_rate: float
    backends: tuple[TimedBackend, ...]
    rows: tuple[TimedRow, ...]


@dataclass(frozen=True)
class Changes:
    """What the modified copies change."""

    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Copies:
    """The copies that are kept; ``not_writable`` is why none can be added, if so."""

    bundled_folder: str
    cached_folder: str
    not_writable: str | None
    copies: tuple[KeptCopy, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class Enabled:
    """What ``enable`` has done, and whether interpreters that start here are served now."""

    written: tuple[str, ...]
    startup_files: tuple[StartupFile, ...]
    takes_effect: bool


@dataclass(frozen=True)
class Disabled:
    """What ``disable`` has done, and whether interpreters that start here are served now."""

    removed: tuple[str, ...]
    startup_files: tuple[StartupFile, ...]
    takes_effect: bool
