"""What ``run`` prepares for a program, on every Python, before it runs."""

from __future__ import annotations

import io
import linecache
import os
import runpy
import signal
import sys
from importlib.machinery import BuiltinImporter, SourceFileLoader
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Callable

import pytest

from jetson_mamba.errors import CannotRun
from jetson_mamba.hook import runner


class Ended(Exception):
    """Where the program would have run."""


class State:
    """The state of the process, which is put back, and the program that would run."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch
        self.programs: list[Callable[[], Any]] = []
        patch.setattr(sys, "argv", ["jetson-mamba", "run"])
        patch.setattr(sys, "path", ["the command's", "other"])
        patch.setitem(sys.modules, "__main__", sys.modules["__main__"])
        patch.setattr(linecache, "cache", {})

        def run(program: Callable[[], Any]) -> None:
            self.programs.append(program)
            raise Ended

        patch.setattr(runner, "_run", run)

    def on(self, *version: int) -> None:
        """Be that Python."""
        self.patch.setattr(sys, "version_info", version)

    @property
    def main(self) -> dict[str, Any]:
        """The names of the program's module."""
        return vars(sys.modules["__main__"])


@pytest.fixture
def state(monkeypatch: pytest.MonkeyPatch) -> State:
    return State(monkeypatch)


VERSIONS = [(3, 8, 0), (3, 9, 0), (3, 12, 0), (3, 13, 0), (3, 14, 0), (3, 15, 0)]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_script_is_the_module_of_its_file(
    version: tuple[int, ...], state: State, tmp_path: Path
) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.py").write_text("made = __name__\n")
    (tmp_path / "link.py").symlink_to("deep/x.py")
    state.patch.chdir(tmp_path)
    state.on(*version)
    with pytest.raises(Ended):
        runner.run_script("link.py", ["-a", "b"])
    assert sys.argv == ["link.py", "-a", "b"]
    assert sys.path == [str(tmp_path / "deep"), "other"]
    path = str(tmp_path / "link.py") if version >= (3, 9) else "link.py"
    main = state.main
    assert (main["__name__"], main["__file__"]) == ("__main__", path)
    assert isinstance(main["__loader__"], SourceFileLoader) and main["__loader__"].path == path
    assert main["__loader__"].name == "__main__"
    assert main.get("__cached__", "none") == (None if version < (3, 15) else "none")
    assert ("__annotations__" in main) is (version < (3, 14))
    assert main["__builtins__"] is sys.modules["builtins"]
    (program,) = state.programs
    program()
    assert main["made"] == "__main__"


@pytest.mark.parametrize("name", ["folder", "archive.zip"])
def test_a_folder_or_an_archive_runs_its_main(name: str, state: State, tmp_path: Path) -> None:
    import zipfile

    asked: list[Any] = []
    state.patch.setattr(runpy, "_run_module_as_main", lambda *given: asked.append(given))
    state.patch.chdir(tmp_path)
    if name == "folder":
        (tmp_path / name).mkdir()
    else:
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("__main__.py", "")
    with pytest.raises(Ended):
        runner.run_script(name, [])
    assert sys.path == [str(tmp_path / name), "other"] and sys.argv == [name]
    state.programs[0]()
    assert asked == [("__main__", False)]


def test_a_script_that_cannot_be_read_is_named(state: State, tmp_path: Path) -> None:
    path = str(tmp_path / "none.py")
    with pytest.raises(CannotRun) as raised:
        runner.run_script(path, [])
    assert str(raised.value) == f"{path}: No such file or directory; expected a Python script"
    assert isinstance(raised.value.__cause__, FileNotFoundError) and state.programs == []


def test_a_module_is_found_from_this_folder(state: State, tmp_path: Path) -> None:
    asked: list[Any] = []
    state.patch.setattr(runpy, "_run_module_as_main", lambda *given: asked.append(given))
    state.patch.chdir(tmp_path)
    before = sys.modules["__main__"]
    with pytest.raises(Ended):
        runner.run_module("a.b", ["c"])
    assert sys.argv == ["-m", "c"] and sys.path == [str(tmp_path), "other"]
    assert sys.modules["__main__"] is not before
    state.programs[0]()
    assert asked == [("a.b",)]


@pytest.mark.parametrize("version", VERSIONS)
def test_code_has_no_file_and_from_3_13_on_its_lines(
    version: tuple[int, ...], state: State
) -> None:
    state.on(*version)
    code = "  made = 1\n  more = __name__" if version >= (3, 14) else "made = 1\nmore = __name__"
    with pytest.raises(Ended):
        runner.run_code(code, ["x"])
    assert sys.argv == ["-c", "x"] and sys.path == ["", "other"]
    assert state.main["__loader__"] is BuiltinImporter and "__file__" not in state.main
    lines = ["made = 1\n", "more = __name__"]
    cached = {"<string>": (len("".join(lines)), None, lines, "<string>")}
    assert linecache.cache == (cached if version >= (3, 13) else {})
    state.programs[0]()
    assert (state.main["made"], state.main["more"]) == (1, "__main__")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("there", [True, False])
def test_what_stdin_holds_is_a_program(version: tuple[int, ...], there: bool, state: State) -> None:
    state.on(*version)
    given = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(b"made = __file__"))
    state.patch.setattr(sys, "stdin", given if there else None)
    with pytest.raises(Ended):
        runner.run_stdin(["x"])
    assert sys.argv == ["-", "x"] and sys.path == ["", "other"]
    main = state.main
    assert main["__loader__"] is BuiltinImporter and main["__file__"] == "<stdin>"
    assert main.get("__cached__", "none") == (None if version < (3, 15) else "none")
    state.programs[0]()
    assert main.get("made") == ("<stdin>" if there else None)


def test_on_a_terminal_it_is_a_session(state: State) -> None:
    import code

    asked: list[Any] = []
    state.patch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    state.patch.setattr(code, "interact", lambda **given: asked.append(given))
    with pytest.raises(Ended):
        runner.run_stdin([])
    assert "__file__" not in state.main
    state.programs[0]()
    assert asked == [{"local": state.main, "exitmsg": ""}]
    assert asked[0]["local"] is state.main


@pytest.mark.parametrize(
    ("flags", "first"),
    [
        ({"safe_path": False, "isolated": 0}, "the program's"),
        ({"isolated": 0}, "the program's"),
        ({"safe_path": True, "isolated": 0}, "the command's"),
        ({"safe_path": False, "isolated": 1}, "the command's"),
    ],
)
def test_the_programs_folder_is_first_unless_python_is_told_otherwise(
    flags: dict[str, Any], first: str, state: State
) -> None:
    state.patch.setattr(sys, "flags", SimpleNamespace(**flags))
    runner._put_first("the program's")
    assert sys.path == [first, "other"]


@pytest.mark.parametrize(
    ("raised", "code", "is_interrupt"),
    [
        (None, 0, False),
        (SystemExit(3), 3, False),
        (ValueError("x"), 1, False),
        (KeyboardInterrupt(), 1, True),
    ],
)
def test_a_program_ends_as_python_would_end(
    raised: BaseException | None,
    code: int,
    is_interrupt: bool,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    at_exit: list[Callable[[], None]] = []
    shown: list[Any] = []
    ends: list[Any] = []
    monkeypatch.setattr(runner.atexit, "register", at_exit.append)  # type: ignore[attr-defined]
    monkeypatch.setattr(sys, "excepthook", lambda *given: shown.append(given))
    for stream in ("stdout", "stderr"):
        flushed = SimpleNamespace(flush=lambda stream=stream: ends.append(stream))
        monkeypatch.setattr(sys, stream, flushed)
    monkeypatch.setattr(signal, "signal", lambda *given: ends.append(given))
    monkeypatch.setattr(os, "kill", lambda *given: ends.append(given))
    code_of = compile("def program():\n    if error: raise error\n", "/program.py", "exec")
    names: dict[str, Any] = {"error": raised}
    exec(code_of, names)
    with pytest.raises(SystemExit) as ended:
        runner._run(names["program"])
    (end,) = at_exit
    end()
    monkeypatch.undo()
    assert ended.value.code == code
    assert ends == (
        [
            *("stdout", "stderr", (signal.SIGINT, signal.SIG_DFL)),
            (os.getpid(), signal.SIGINT),
        ]
        if is_interrupt
        else []
    )
    if raised is None or isinstance(raised, SystemExit):
        assert shown == []
    else:
        ((kind, error, traceback),) = shown
        assert kind is type(raised) and error is raised
        assert traceback.tb_frame.f_code.co_filename == "/program.py"
        assert error.__traceback__ is traceback
