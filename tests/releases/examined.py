"""What the overrides make of the texts of releases, found out once in a run.

Each text takes the rewriter up to a second, and several files of tests ask for all of them.
"""

from __future__ import annotations

import os
import pickle
import tempfile
from contextlib import contextmanager
from typing import Any, Collection, Iterator

import pytest

from jetson_mamba.hook import copies
from jetson_mamba.rewrite import Rewritten
from tests import interpreters


@contextmanager
def once() -> Iterator[None]:
    """Let :func:`copies.examine` keep what it finds, under the name that the copy has."""
    folder = interpreters.copies() / "examined"
    folder.mkdir(exist_ok=True)
    examine = copies.examine

    def kept(
        target: str,
        source: bytes,
        path: str | None = None,
        package: str = "mamba_ssm",
        without: Collection[str] = (),
    ) -> tuple[str, Rewritten]:
        file = folder / copies.file_name(target, source, path, package, without)
        if not file.exists():
            found = examine(target, source, path, package, without)
            handle, written = tempfile.mkstemp(dir=folder)
            with os.fdopen(handle, "wb") as opened:
                pickle.dump(found, opened)
            # Another process may make the same.
            os.replace(written, file)
        answer: Any = pickle.loads(file.read_bytes())
        encoding, rewritten = answer
        return encoding, rewritten

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copies, "examine", kept)
        yield
