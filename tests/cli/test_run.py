"""The command `run` behaves as `python` does, with the hook active."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli.command import REPOSITORY

SHOW = """\
import pickle, sys
class Here: pass
print(__name__, __file__, __spec__, __package__, __doc__, sorted(vars()))
print(getattr(__loader__, "__name__", type(__loader__)), getattr(__loader__, "path", None))
print(getattr(__loader__, "name", None), globals().get("__cached__", "none"))
print(sys.argv, sys.path[0], sys.modules['__main__'].__dict__ is globals())
print(type(pickle.loads(pickle.dumps(Here()))) is Here)
"""


def run(
    *arguments: str, folder: Path, ours: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """``jetson-mamba run`` with the arguments, or ``python`` with the same ones."""
    return subprocess.run(
        [sys.executable, *(("-m", "jetson_mamba", "run") if ours else ()), *arguments],
        # What is said is kept back, as it is where nothing says otherwise.
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "COLUMNS": "80", "PYTHONUNBUFFERED": ""},
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        # Whoever starts the tests in the background may have it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def same(*arguments: str, folder: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The result, which must be that of ``python`` with the same arguments."""
    found = run(*arguments, folder=folder, stdin=stdin)
    expected = run(*arguments, folder=folder, ours=False, stdin=stdin)
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
    assert found.stderr == expected.stderr
    return found


def test_a_script_sees_what_it_sees_under_python(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "show.py").write_text(SHOW)
    done = same("deep/show.py", "-x", "--help", "--", "-m", "last", folder=tmp_path)
    assert "['deep/show.py', '-x', '--help', '--', '-m', 'last']" in done.stdout


def test_a_module_sees_what_it_sees_under_python(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").touch()
    (tmp_path / "package" / "__main__.py").write_text(SHOW.replace("__spec__", "__spec__.name"))
    done = same("-m", "package", "--json", "-m", folder=tmp_path)
    assert "--json" in done.stdout


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_a_folder_or_archive_with_a_main_runs(kind: str, tmp_path: Path) -> None:
    code = "import sys, beside\nprint(sys.argv, sys.path[0], beside.X, __name__)\n"
    files = {"__main__.py": code, "beside.py": "X = 1\n"}
    if kind == "folder":
        (tmp_path / "program").mkdir()
        for name, text in files.items():
            (tmp_path / "program" / name).write_text(text)
    else:
        with zipfile.ZipFile(tmp_path / "program", "w") as archive:
            for name, text in files.items():
                archive.writestr(name, text)
    assert same("program", "argument", folder=tmp_path).returncode == 0


@pytest.mark.parametrize(
    "code",
    [
        "def f():\n    raise ValueError('on line 2')\nf()\n",
        "import sys\nsys.exit(7)\n",
        "import sys\nsys.exit('a message')\n",
        "raise SystemExit\n",
        "def broken(:\n",
        "import atexit\natexit.register(lambda: print('at exit', __name__))\n",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('two') from e\n",
        "import sys\nsys.excepthook = lambda *e: print('own hook', e[0])\nraise OSError\n",
        "from __future__ import annotations\nx: int = 1\nprint(__annotations__)\n",
        "import no_such_module\n",
    ],
)
def test_the_end_of_a_script_is_that_under_python(code: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(code)
    same("script.py", folder=tmp_path)


@pytest.mark.parametrize(
    "code",
    [
        "import sys; print(sys.argv, sys.path[0], sorted(vars()), __name__)",
        "def f():\n    raise ValueError('x')\nf()",
        "broken(",
        "import sys; sys.exit(7)",
        "import sys; sys.exit('a message')",
    ],
)
def test_code_runs_as_under_python(code: str, tmp_path: Path) -> None:
    same("-c", code, "-h", "--json", "-", folder=tmp_path)


AS_ITSELF = """\
import sys
def annotated(x: sys): pass
print(annotated.__annotations__, __builtins__.len, sys.path[0], sys.argv)
"""


@pytest.mark.parametrize("form", ["script", "code", "stdin"])
@pytest.mark.parametrize("safe_path", ["", "1"])
def test_a_program_inherits_nothing_of_what_runs_it(
    form: str, safe_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", safe_path)  # from Python 3.11 on
    (tmp_path / "script.py").write_text(AS_ITSELF)
    arguments = {"script": ["script.py"], "code": ["-c", AS_ITSELF], "stdin": ["-"]}[form]
    done = same(*arguments, "last", folder=tmp_path, stdin=AS_ITSELF * (form == "stdin"))
    assert done.returncode == 0 and "'last'" in done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "raise KeyboardInterrupt\n",
        "print('said, and not yet written')\nraise KeyboardInterrupt\n",
        "import sys\nsys.stderr.write('said')\nraise KeyboardInterrupt('why')\n",
        "import atexit\natexit.register(print, 'at exit')\nprint(1)\nraise KeyboardInterrupt\n",
        "import atexit, sys\natexit.register(sys.stderr.write, 'end')\nraise KeyboardInterrupt\n",
        "import threading, time\n"
        "def work():\n    time.sleep(0.2)\n    print('done')\n"
        "threading.Thread(target=work).start()\nraise KeyboardInterrupt\n",
        "import os, signal\nprint('first')\nos.kill(os.getpid(), signal.SIGINT)\n"
        "import time\ntime.sleep(20)\n",
    ],
)
def test_an_interrupt_ends_the_process_as_python_does(code: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(code)
    assert same("script.py", folder=tmp_path).returncode == -signal.SIGINT


def test_a_traceback_of_a_module_starts_in_the_module(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("raise ValueError('here')\n")
    done = run("-m", "fails", folder=tmp_path)
    assert done.returncode == 1
    first, second, *_ = done.stderr.splitlines()
    assert first == "Traceback (most recent call last):"
    assert "fails.py" in second


def test_a_spawned_worker_finds_the_script_again(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import multiprocessing\n"
        "def square(x): return x * x\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(square, [3]))\n"
    )
    assert same("script.py", folder=tmp_path).stdout == "[9]\n"


def test_the_hook_is_active_in_the_script(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import sys\nprint(type(sys.meta_path[0]).__module__, 'torch' in sys.modules)\n"
    )
    assert run("script.py", folder=tmp_path).stdout == "jetson_mamba.finder False\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(("absent.py",), "absent.py: No such file"), ((), "Missing argument 'SCRIPT'")],
)
def test_a_script_that_is_not_there_is_named(
    arguments: tuple[str, ...], expected: str, tmp_path: Path
) -> None:
    done = run(*arguments, folder=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert expected in line


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run("-m", "absent_module", folder=tmp_path)
    assert done.returncode == 1
    assert "No module named absent_module" in done.stderr
