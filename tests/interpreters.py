"""Interpreters in which torch is imported already: a test that needs a fresh one has it at once.

:func:`run` takes what an interpreter would be started with and returns what it printed. It runs
in a process that is forked from a server, one for each set of ``modules``; a server has imported
these and nothing of the project. What a new interpreter would do is done anew: the environment,
the path, the filters of warnings, and the hook, which the startup file would activate. Whatever
looks at the start of Python itself, its startup files or what is imported there, takes
``subprocess.run``.
"""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Mapping, Sequence

REPOSITORY = Path(__file__).resolve().parent.parent
TORCH = ("torch", "numpy")
# What torch.compile and torch.export import at their first use: it takes longer than torch itself.
# Triton is among it, so that TRITON_INTERPRET comes too late.
COMPILER = (
    *(*TORCH, "torch._dynamo", "torch._functorch.aot_autograd", "torch.export"),
    *("functorch.compile", "torch._inductor.compile_fx"),
)

# When the collector looks for cycles, where Python's 700 objects would have it look at all of torch
# again and again.
SELDOM = (100_000, 50, 100)
# The variable that names a folder of copies which is there, and somebody else's to remove.
COPIES = "TESTS_COPIES"

_copies: list[tempfile.TemporaryDirectory[str]] = []
_servers: dict[tuple[Any, ...], subprocess.Popen[str]] = {}


def run(
    arguments: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path = REPOSITORY,
    timeout: float = 300,
    modules: tuple[str, ...] = TORCH,
    bare: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run([sys.executable, *arguments], ...)`` with both outputs captured.

    ``arguments`` are ``-W action`` or ``-W action::Category`` any number of times, then
    ``-c code``, ``-m module`` or a file. The environment is that of this process by default. A
    process that takes longer than ``timeout`` seconds ends by a signal. With ``bare`` it is one of
    ``python -S``, and the server has its modules from that folder.
    """
    server = _servers.get((modules, bare))
    environment = dict(os.environ if env is None else env)
    if server is None or server.poll() is not None:
        server = _servers[modules, bare] = _start(modules, bare)
    with tempfile.TemporaryDirectory() as folder:
        outputs = [str(Path(folder) / name) for name in ("stdout", "stderr")]
        request = [list(arguments), environment, str(cwd), timeout, *outputs]
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        answer = server.stdout.readline()
        if not answer:
            raise RuntimeError(f"the server of interpreters with {', '.join(modules)} has ended")
        out, err = (Path(each).read_text(encoding="utf-8") for each in outputs)
    command = [sys.executable, *arguments]
    return subprocess.CompletedProcess(command, json.loads(answer), out, err)


def copies() -> Path:
    """A cache for programs in which copies are not what is looked at: the same for all of a run.

    Processes that run tests side by side have one too, where :data:`COPIES` names it.
    """
    if COPIES in os.environ:
        return Path(os.environ[COPIES])
    if not _copies:
        _copies.append(tempfile.TemporaryDirectory())
    return Path(_copies[0].name)


@atexit.register
def _close() -> None:
    for server in _servers.values():
        assert server.stdin is not None and server.stdout is not None
        server.stdin.close()
        server.wait()
        server.stdout.close()
    for folder in _copies:
        folder.cleanup()


def _start(modules: tuple[str, ...], bare: Path | None) -> subprocess.Popen[str]:
    options = ("-W", "ignore") if bare is None else ("-W", "ignore", "-S")
    return subprocess.Popen(
        [sys.executable, *options, __file__, *modules],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={
            **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
            "JETSON_MAMBA": "off",
            # The threads of one process would not survive the fork.
            "OMP_NUM_THREADS": "1",
            # Inductor would start processes for it, each with a torch of its own.
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            **({} if bare is None else {"PYTHONPATH": str(bare)}),
        },
    )


def _serve(modules: Sequence[str]) -> None:
    import gc
    from importlib import import_module

    gc.set_threshold(*SELDOM)
    for module in modules:
        import_module(module)
    path = sys.path[1:]  # without this file's folder
    # Where there is no startup file, whatever runs activates the hook itself.
    here = sys.modules.get("jetson_mamba")
    starts = getattr(here, "activated_by", None) == "startup file"
    # Else every child would copy what its collector looks at.
    gc.freeze()
    answers = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(answers, "w") as out:
        for line in sys.stdin:
            child = os.fork()
            if child == 0:
                os.close(answers)
                _child(path, starts, *json.loads(line))
            _, status = os.waitpid(child, 0)
            code = -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
            print(code, file=out, flush=True)


def _child(
    path: list[str],
    starts: bool,
    arguments: list[str],
    environment: dict[str, str],
    folder: str,
    timeout: float,
    *outputs: str,
) -> None:
    """Be the interpreter, to its end."""
    import signal

    signal.alarm(int(timeout))
    for descriptor, name in enumerate((os.devnull, *outputs)):
        opened = os.open(name, os.O_RDONLY if not descriptor else os.O_WRONLY | os.O_CREAT, 0o600)
        os.dup2(opened, descriptor)
        os.close(opened)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    code = _ended(lambda: _program(path, starts, arguments))
    import threading

    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _program(path: list[str], starts: bool, arguments: list[str]) -> None:
    import builtins
    import runpy
    import warnings
    from types import ModuleType

    warnings.resetwarnings()
    while arguments[0] == "-W":
        # As in an interpreter: a category by its name may follow the action.
        action, _, category = arguments[1].partition("::")
        kind = getattr(builtins, category) if category else Warning
        warnings.simplefilter(action, kind)  # type: ignore[arg-type]
        arguments = arguments[2:]
    form = arguments[0] if arguments[0] in ("-c", "-m") else "file"
    what, *rest = arguments[form != "file" :]
    file = os.path.abspath(what)
    first = {"-c": "", "-m": os.getcwd(), "file": os.path.dirname(file)}[form]
    beside = [each for each in os.environ.get("PYTHONPATH", "").split(os.pathsep) if each]
    sys.path[:] = [first, *beside, *path]
    sys.argv = ["-c" if form == "-c" else what, *rest]
    for name in [each for each in sys.modules if each.partition(".")[0] == "jetson_mamba"]:
        del sys.modules[name]
    if starts:
        from jetson_mamba import _finder

        _finder.activated_by = "startup file"
    if form == "-c":
        main = ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(what, "<string>", "exec"), vars(main))
    elif form == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(file, run_name="__main__")


def _ended(program: Callable[[], Any]) -> int:
    """The exit code of a program, with what Python would print of its end."""
    import traceback

    try:
        program()
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve(sys.argv[1:])
