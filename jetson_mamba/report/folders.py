"""Whether a folder can be written, found out by writing: permissions do not tell all of it."""

from __future__ import annotations

import contextlib
import os
import tempfile


def unwritable(folder: str) -> OSError | None:
    """Why no file can be made in a folder, which need not be there; nothing of the trial stays."""
    made: list[str] = []
    try:
        missing, there = [], os.path.abspath(folder)
        while not os.path.lexists(there):
            missing.append(there)
            there = os.path.dirname(there)
        for each in reversed(missing):
            os.mkdir(each)
            made.append(each)
        if not os.path.isdir(folder):
            os.mkdir(folder)  # which says what is in its place
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return error
    finally:
        for each in reversed(made):
            with contextlib.suppress(OSError):
                os.rmdir(each)
    return None
