"""Runs a script or a module as ``python`` would, with the hook active.

``__main__`` is a module of its own, ``sys.argv`` and ``sys.path[0]`` are the program's, and its
exceptions and exit codes are seen as they would be without this package. Processes that the
program starts are ordinary ones: only the startup file serves them.
"""

from __future__ import annotations

import atexit
import linecache
import os
import pkgutil
import runpy
import signal
import sys
import textwrap
from importlib.machinery import BuiltinImporter, SourceFileLoader
from types import ModuleType, TracebackType
from typing import Callable, NoReturn, Sequence

from jetson_mamba.errors import CannotRun


def run_script(script: str, arguments: Sequence[str]) -> NoReturn:
    """``python SCRIPT ARGUMENTS``: a source file, or a folder or archive with a ``__main__``."""
    sys.argv = [script, *arguments]
    if pkgutil.get_importer(script) is not None:
        _put_first(os.path.abspath(script))
        _run(lambda: runpy._run_module_as_main("__main__", False))  # type: ignore[attr-defined]
    _put_first(os.path.dirname(os.path.realpath(script)))
    try:
        with open(script, "rb") as file:
            source = file.read()
    except OSError as error:
        raise CannotRun(f"{script}: {error.strerror}; expected a Python script") from error
    path = os.path.abspath(script) if sys.version_info >= (3, 9) else script
    main = _fresh_main()
    main.__file__ = path
    _set_cached(main)
    main.__loader__ = SourceFileLoader("__main__", path)

    def execute() -> None:
        exec(compile(source, path, "exec", dont_inherit=True), vars(main))

    _run(execute)


def run_module(module: str, arguments: Sequence[str]) -> NoReturn:
    """``python -m MODULE ARGUMENTS``."""
    sys.argv = ["-m", *arguments]
    _put_first(os.getcwd())
    _fresh_main()
    _run(lambda: runpy._run_module_as_main(module))  # type: ignore[attr-defined]


def run_code(code: str, arguments: Sequence[str]) -> NoReturn:
    """``python -c CODE ARGUMENTS``."""
    sys.argv = ["-c", *arguments]
    _put_first("")
    main = _fresh_main()
    main.__loader__ = BuiltinImporter
    if sys.version_info >= (3, 14):
        code = textwrap.dedent(code)
    if sys.version_info >= (3, 13):
        # From there on tracebacks show the lines.
        lines = code.splitlines(keepends=True)
        linecache.cache["<string>"] = (len(code), None, lines, "<string>")
    _run(lambda: exec(compile(code, "<string>", "exec", dont_inherit=True), vars(main)))


def run_stdin(arguments: Sequence[str]) -> NoReturn:
    """``python - ARGUMENTS``: the program that stdin holds, or a session on a terminal."""
    sys.argv = ["-", *arguments]
    _put_first("")
    main = _fresh_main()
    main.__loader__ = BuiltinImporter
    if sys.stdin is not None and sys.stdin.isatty():
        import code

        _run(lambda: code.interact(local=vars(main), exitmsg=""))
    source = sys.stdin.buffer.read() if sys.stdin is not None else b""
    main.__file__ = "<stdin>"
    _set_cached(main)
    _run(lambda: exec(compile(source, "<stdin>", "exec", dont_inherit=True), vars(main)))


def _put_first(folder: str) -> None:
    """Put the program's folder where the command's own stands."""
    if not getattr(sys.flags, "safe_path", False) and not sys.flags.isolated:
        sys.path[0] = folder


def _fresh_main() -> ModuleType:
    main = ModuleType("__main__")
    vars(main)["__builtins__"] = sys.modules["builtins"]
    if sys.version_info < (3, 14):
        vars(main)["__annotations__"] = {}
    sys.modules["__main__"] = main
    return main


def _set_cached(main: ModuleType) -> None:
    """Say that a file or what stands for one has no bytecode, as Python did before 3.15."""
    if sys.version_info < (3, 15):
        vars(main)["__cached__"] = None


def _run(program: Callable[[], None]) -> NoReturn:
    """Run it; exit as the interpreter does at a program's end."""
    interrupted = False

    def end() -> None:
        if interrupted:
            sys.stdout.flush()
            sys.stderr.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)

    # The first to be registered is the last to run, after all that the program has registered.
    atexit.register(end)
    try:
        program()
    except SystemExit:
        raise
    except BaseException as error:
        error.__traceback__ = _of_the_program(error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        interrupted = isinstance(error, KeyboardInterrupt)
        sys.exit(1)
    sys.exit(0)


def _of_the_program(traceback: TracebackType | None) -> TracebackType | None:
    """The traceback from the program's first frame on."""
    own = (__file__, runpy.__file__, "<frozen runpy>")
    start = traceback
    while start is not None and start.tb_frame.f_code.co_filename in own:
        start = start.tb_next
    return start  # None where the program does not compile: the error tells the line
