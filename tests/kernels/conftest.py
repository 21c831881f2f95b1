"""Where kernels that run on a CPU are kept, so that each is compiled once."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of libraries, which outlasts the run where one for caches is named."""
    kept = os.environ.get("JETSON_MAMBA_CACHE")
    folder = Path(kept) / "emulated" if kept else tmp_path_factory.mktemp("kernels")
    folder.mkdir(parents=True, exist_ok=True)
    return folder
