"""The startup files in ``site-packages``: put back, removed, compared with the packaged ones."""

from __future__ import annotations

import os
import pkgutil
import site
import subprocess
import sys
import sysconfig
from dataclasses import dataclass

import jetson_mamba
from jetson_mamba.errors import CannotRun

NAMES = ("jetson_mamba.pth", "jetson_mamba.start", "_jetson_mamba_start.py")


@dataclass(frozen=True)
class StartupFile:
    """A startup file that is there; ``packaged`` says that it is what this package ships."""

    path: str
    packaged: bool


def folders() -> list[str]:
    """The folders in which Python looks for startup files, the environment's own first."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    found += site.getsitepackages() if hasattr(site, "getsitepackages") else []
    if site.ENABLE_USER_SITE:
        found.append(site.getusersitepackages())
    return list(dict.fromkeys(os.path.abspath(folder) for folder in found))


def installed() -> list[StartupFile]:
    """The startup files that are there."""
    found = []
    for folder in folders():
        for name in NAMES:
            content = _content(os.path.join(folder, name))
            if content is not None:
                path = os.path.join(folder, name)
                found.append(StartupFile(path, content == _packaged(name)))
    return found


def enable() -> list[str]:
    """Write the packaged files beside the installed package, or into ``site-packages``.

    Returns the files that changed. Raises :class:`CannotRun` where that folder cannot be written.
    """
    own = os.path.dirname(os.path.dirname(os.path.abspath(jetson_mamba.__file__)))
    folder = own if own in folders() else folders()[0]
    changed = []
    for name in NAMES:
        path = os.path.join(folder, name)
        if _content(path) == _packaged(name):
            continue
        temporary = f"{path}.{os.getpid()}"  # not a name that Python executes
        try:
            with open(temporary, "wb") as file:
                file.write(_packaged(name))
            os.replace(temporary, path)
        except OSError as error:
            if os.path.exists(temporary):
                os.unlink(temporary)
            raise CannotRun(
                f"{path}: {error.strerror}; expected a folder that can be written"
            ) from error
        changed.append(path)
    return changed


def disable() -> list[str]:
    """Remove the files, wherever they are; returns which. Raises :class:`CannotRun`."""
    removed = []
    for file in installed():
        try:
            os.unlink(file.path)
        except OSError as error:
            raise CannotRun(
                f"{file.path}: {error.strerror}; expected a file that can be removed"
            ) from error
        removed.append(file.path)
    return removed


def takes_effect() -> bool:
    """Whether an interpreter that starts here is activated by them."""
    return activates() == "startup file"


def activates() -> str | None:
    """What activates an interpreter that starts here: ``import`` by a startup file of another text.

    None if nothing does.
    """
    code = (
        "import sys; m = sys.modules.get('jetson_mamba'); "
        "print(m.activated_by if m and m.is_active() else None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    found = done.stdout.strip()
    return found if found in ("startup file", "import") else None


def _packaged(name: str) -> bytes:
    content = pkgutil.get_data(__package__, name)  # which may be in an archive
    if content is None:
        raise FileNotFoundError(f"{__package__} does not have {name}")
    return content


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return None
