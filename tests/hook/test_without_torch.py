"""`make hook` runs these tests by Pythons that have no torch: there they can all be imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

# No torch is found, and no plugin that would look for it.
COLLECT = """
import sys
import pytest

class NoTorch:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None

import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "torch" else found(name, *rest)
sys.meta_path.insert(0, NoTorch)
sys.exit(pytest.main(["-p", "no:cacheprovider", "--collect-only", "-qq", sys.argv[1]]))
"""


def test_where_there_is_no_torch_the_tests_that_need_none_are_collected() -> None:
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", COLLECT, str(folder)],
        capture_output=True,
        text=True,
        cwd=folder.parent.parent,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:]
    assert "test_activation.py" in done.stdout and "test_joining.py" not in done.stdout
