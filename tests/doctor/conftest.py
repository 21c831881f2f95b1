"""The fixture of the doctor's tests."""

from pathlib import Path

import pytest

from tests.doctor.sandbox import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with nothing on it."""
    return Machine(tmp_path)
