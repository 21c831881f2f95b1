"""The fixtures of the doctor's tests."""

from pathlib import Path

import pytest

from jetson_mamba.report.facts import Facts
from jetson_mamba.report.findings.with_triton import PTXAS
from tests.doctor.facts import of_a_healthy_machine
from tests.doctor.sandbox import Machine


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine with nothing on it."""
    return Machine(tmp_path)


@pytest.fixture
def healthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Facts:
    """What is known of a machine on which nothing is wrong."""
    monkeypatch.delenv(PTXAS, raising=False)
    return of_a_healthy_machine(tmp_path)
