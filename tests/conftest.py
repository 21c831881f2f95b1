"""The order of the tests, in which what takes long comes first.

No test depends on it. Processes that run tests side by side are given a file at a time; one that is
left with a long file when the others are done would make the run as long as that.
"""

from __future__ import annotations

import gc
import os
import tempfile
from pathlib import Path
from typing import Iterator

import pytest

from tests import interpreters, process

TESTS = Path(__file__).resolve().parent
# Files and folders that take many seconds, the longest first; before them what makes all copies,
# which others find made.
LONG = (
    *("releases/test_bundle", "joints/test_joints", "export/test_models", "mutants", "matrix"),
    *("cli/test_install", "compile/test_mamba", "kernels", "without_triton", "cli/test_demo"),
    *("doctor/test_symptoms.py", "modules", "releases", "ops/test_selective_scan.py"),
    *("ops/test_causal_conv1d", "docs/test_commands", "distributed", "rewrite", "compile"),
    *("hook", "doctor", "cli", "ops"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Make one folder of copies for all processes of this run, which inherit its name.

    Inductor is told to use no vectors: else it compiles and loads a program for each kind of them
    that the CPU has, before the first kernel.
    """
    os.environ["TORCHINDUCTOR_VEC_ISA_OK"] = "0"
    gc.set_threshold(*interpreters.SELDOM)
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory()
        config.add_cleanup(folder.cleanup)
        os.environ[interpreters.COPIES] = folder.name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the items; those of a file stay together, in their order."""
    items.sort(key=lambda item: rank(item.path))


def pytest_collection_finish() -> None:
    """Let the collector pass over all that is there before the first test.

    Tests that ask what is freed collect, and would go through all of torch each time.
    """
    gc.collect()
    gc.freeze()


def rank(path: Path) -> int:
    """The place of a file among those that are long, or one after all of them."""
    inside = path.relative_to(TESTS).as_posix() if TESTS in path.parents else ""
    return next((place for place, each in enumerate(LONG) if inside.startswith(each)), len(LONG))


@pytest.fixture(autouse=True)
def _shared_with_other_tests() -> Iterator[None]:
    before = process.states()
    yield
    changed = process.changed(before)
    assert not changed, f"left changed for the tests that follow: {changed}"
