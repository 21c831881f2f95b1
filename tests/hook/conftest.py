"""The fixtures of the hook's tests."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.hook.sandbox import Sandbox

BESIDE_TORCH = ("test_doors_installed.py", "test_tools.py")
WITH_TORCH = re.compile(r"^(import torch|from jetson_mamba\.(ops|dispatch|kernels|replay))", re.M)
# Where there is no torch (`make hook`): what looks at tensors, or at what is installed beside it.
collect_ignore = [
    path.name
    for path in Path(__file__).parent.glob("test_*.py")
    if find_spec("torch") is None
    and (path.name in BESIDE_TORCH or WITH_TORCH.search(path.read_text(encoding="utf-8")))
]


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    """A small `mamba_ssm` and interpreters to import it in."""
    return Sandbox(tmp_path)
