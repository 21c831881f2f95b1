"""The fixtures of the faults."""

from pathlib import Path

import pytest

from tests.faults.environment import Environment
from tests.hook.sandbox import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A small `mamba_ssm`, on the path of programs that import jetson_mamba."""
    return Sandbox(tmp_path)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    """The same, installed with the startup file."""
    return Environment(tmp_path)
