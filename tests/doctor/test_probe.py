"""What is tried in a process of its own; what hangs there is waited for only so long."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jetson_mamba.report import probe
from tests.doctor.sandbox import REPOSITORY

# A clock that a slow import of torch puts forward, and on which each look takes a second.
SLOW = """
import sys, time, types
from jetson_mamba.report import probe

now = 0
def passes(seconds):
    global now
    now += seconds
probe.time = types.SimpleNamespace(
    monotonic=lambda: now, sleep=lambda _: (time.sleep(0.001), passes(1))
)
probe._torch = lambda: passes(200) or {"version": "1"}
probe.main(["torch", "quick", "hangs"], sys.argv[1])
print(now)
"""


def test_what_hangs_is_ended_before_nobody_waits_any_more(tmp_path: Path) -> None:
    """However long torch took: else the fork that hangs would be left behind."""
    (tmp_path / "hangs.py").write_text("import time; time.sleep(600)\n")
    (tmp_path / "quick.py").touch()
    done = subprocess.run(
        [sys.executable, "-S", "-c", SLOW, str(tmp_path)],
        env={"PYTHONPATH": f"{REPOSITORY}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 200 < int(done.stdout) < probe.SECONDS
    told = {
        name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("quick", "hangs")
    }
    assert "error" not in told["quick"]
    assert told["hangs"] == {"error": "no answer in time"}


@pytest.mark.parametrize(
    ("code", "words"),
    [(0, "exit status 0"), (3, "exit status 3"), (-9, "signal SIGKILL"), (-40, "signal 40")],
)
def test_how_a_process_ended_is_said_in_words(code: int, words: str) -> None:
    assert probe._end(code) == words
