"""Keeps files that this package makes to be executed later, such as modified copies.

What lies in a cache is code, so it is held to more than speed. A directory is used only where
nobody but its owner can write; a file is written whole under another name and moved into
place, and its last line is a digest of its name and content that is checked before use. No
writable place is no error: the functions return None, and the caller does without.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from typing import Callable

DIGEST_PREFIX = b"# sha256 "
# Prefix, 64 hexadecimal digits, newline.
TRAILER_LENGTH = len(DIGEST_PREFIX) + 64 + 1


def root() -> str:
    """The directory that holds everything: ``JETSON_MAMBA_CACHE``, else the user's cache.

    A user without a home, as in a container, gets a directory among the temporary ones.
    """
    explicit = os.environ.get("JETSON_MAMBA_CACHE")
    if explicit:
        return os.path.abspath(explicit)
    home = os.path.expanduser("~")
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(home, ".cache")
    if base.startswith("~"):
        import tempfile

        return os.path.join(tempfile.gettempdir(), f"jetson_mamba-{os.getuid()}")
    return os.path.join(os.path.abspath(base), "jetson_mamba")


def private_directory(*names: str) -> str | None:
    """The directory ``root()/names...``, made if it is not there; None where it is not safe.

    Every level from the root down must be a directory, not a link, of this user, in which no
    one else may write.
    """
    directory = root()
    try:
        os.makedirs(os.path.dirname(directory), exist_ok=True)
        for name in ("", *names):
            directory = os.path.join(directory, name) if name else directory
            with contextlib.suppress(FileExistsError):
                os.mkdir(directory, 0o700)
            if not is_private(directory):
                return None
    except OSError:
        return None
    return directory


def is_private(directory: str) -> bool:
    """Whether it is a directory, not a link, of this user, in which no one else may write."""
    return _is_private(os.lstat(directory), stat.S_ISDIR)


def read(directory: str, name: str) -> bytes | None:
    """The content written under ``name``, or None if it is absent, foreign or damaged."""
    sealed = read_private(os.path.join(directory, name))
    return None if sealed is None else unseal(name, sealed)


def read_private(path: str) -> bytes | None:
    """The bytes of a file of this user that no one else may write; None for any other."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        with open(descriptor, "rb") as file:
            return file.read() if _is_private(os.fstat(descriptor), stat.S_ISREG) else None
    except OSError:
        return None


def write(directory: str, name: str, data: bytes) -> str | None:
    """Keep ``data`` under ``name``; its path, or None where it cannot be kept.

    Python source stays valid: the digest is a comment on a line of its own.
    """
    path = os.path.join(directory, name)
    temporary = os.path.join(directory, f".{name}.{os.getpid()}.{os.urandom(6).hex()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(descriptor, "wb") as file:
                file.write(seal(name, data))
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError:
        return None
    return path


def seal(name: str, data: bytes) -> bytes:
    """``data`` with the line that vouches for it."""
    return data + DIGEST_PREFIX + _digest(name, data) + b"\n"


def unseal(name: str, sealed: bytes) -> bytes | None:
    """The data that was sealed under ``name``, or None if it is not what was written."""
    data, trailer = sealed[:-TRAILER_LENGTH], sealed[-TRAILER_LENGTH:]
    return data if trailer == DIGEST_PREFIX + _digest(name, data) + b"\n" else None


def _digest(name: str, data: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\0" + data).hexdigest().encode()


def _is_private(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    return (
        is_kind(status.st_mode)
        and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())
        and not status.st_mode & 0o022
    )
