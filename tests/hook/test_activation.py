"""What the hook may load at an interpreter's start."""

from __future__ import annotations

import subprocess
import sys

import jetson_mamba


def test_activation_loads_nothing_heavy() -> None:
    printed = subprocess.run(
        [
            *(sys.executable, "-I", "-S", "-c"),
            "import sys; before = set(sys.modules); sys.path.append(sys.argv[1])\n"
            "import jetson_mamba.startup as startup; startup.main()\n"
            "print(*sorted(set(sys.modules) - before))",
            jetson_mamba.__path__[0] + "/..",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    own = {"jetson_mamba", "jetson_mamba.finder", "jetson_mamba.startup"}
    assert own <= set(printed)
    for name in ("torch", "importlib.metadata", "pathlib", "ast", "typing", "re", "warnings"):
        assert name not in printed
