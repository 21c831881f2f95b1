"""The fixtures of the hook's tests."""

from pathlib import Path

import pytest

from tests.hook.sandbox import Sandbox


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A small `mamba_ssm` and interpreters to import it in."""
    return Sandbox(tmp_path)
