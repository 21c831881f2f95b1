"""A process that is forked for a test is the fresh interpreter that the test would have started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import interpreters

PROGRAMS = {
    "code": ["-c", "import sys; print(sys.argv, __name__, sys.path[0])", "one", "two"],
    "module": ["-m", "tests_module", "one"],
    "file": ["program.py", "one"],
    "exit code": ["-c", "raise SystemExit(3)"],
    "exit message": ["-c", "raise SystemExit('said')"],
    "warning": ["-W", "error", "-c", "import warnings; warnings.warn('told')"],
    "ignored": ["-W", "ignore", "-c", "import warnings; warnings.warn('told')"],
    "environment": ["-c", "import os; print(os.environ['OWN'], len(os.environ), os.getcwd())"],
    "end": ["-c", "import atexit; atexit.register(print, 'at the end'); print('first')"],
    "hook": ["-c", "import sys; print([type(each).__name__ for each in sys.meta_path][0])"],
    "off": ["-c", "import sys, jetson_mamba as m; print(m.__file__, len(sys.meta_path))"],
    "modules": [
        "-c",
        "import sys; print(sorted(n for n in sys.modules if n.partition('.')[0] in "
        "('jetson_mamba', 'mamba_ssm', 'transformers', 'tests', 'vendored_overrides')))",
    ],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_ends_and_prints_as_in_an_interpreter_of_its_own(
    name: str, tmp_path: Path
) -> None:
    text = "import sys; print(sys.argv[1:], __name__, sys.path[0], __file__)"
    for file in ("tests_module.py", "program.py"):
        (tmp_path / file).write_text(text)
    environment = {
        **{each: value for each, value in os.environ.items() if "JETSON_MAMBA" not in each},
        "OWN": "here",
        "PYTHONPATH": str(interpreters.REPOSITORY),
        **({"JETSON_MAMBA": "off"} if name == "off" else {}),
    }
    found = interpreters.run(PROGRAMS[name], env=environment, cwd=tmp_path)
    right = subprocess.run(
        [sys.executable, *PROGRAMS[name]],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == right.returncode
    assert found.stdout == right.stdout
    assert found.stderr.splitlines()[-1:] == right.stderr.splitlines()[-1:]


def test_what_one_leaves_behind_no_other_sees(tmp_path: Path) -> None:
    leaving = "import torch, builtins; torch.set_default_dtype(torch.float64); builtins.left = 1"
    seeing = "import torch, builtins; print(torch.get_default_dtype(), hasattr(builtins, 'left'))"
    environment = dict(os.environ)
    assert interpreters.run(["-c", leaving], env=environment, cwd=tmp_path).returncode == 0
    seen = interpreters.run(["-c", seeing], env=environment, cwd=tmp_path)
    assert seen.stdout.split() == ["torch.float32", "False"]


def test_one_that_hangs_or_crashes_ends_alone(tmp_path: Path) -> None:
    environment = dict(os.environ)
    hangs = interpreters.run(
        ["-c", "import time; time.sleep(60)"], env=environment, cwd=tmp_path, timeout=1
    )
    assert hangs.returncode == -signal.SIGALRM
    crash = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert interpreters.run(["-c", crash], env=environment, cwd=tmp_path).returncode == -9
    assert interpreters.run(["-c", "print(1)"], env=environment, cwd=tmp_path).stdout == "1\n"
