"""The command line, ``jetson-mamba``.

Exit codes: 0 done; 1 done, and the result is bad; 2 the command cannot run as it was given or
on this machine, or its output cannot be written, with one line on stderr that says why; 130
interrupted. Where the reader of its output has gone, a command ends by SIGPIPE, which a shell
calls 141. With ``--json`` stdout holds one document, also for exit code 2: its ``error`` says why.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from typing import Sequence

from jetson_mamba import advice
from jetson_mamba.cli import commands
from jetson_mamba.cli.commands import app
from jetson_mamba.errors import CannotRun

__all__ = ["app", "main"]

# What writing to a pipe, a full disk or a terminal that has gone gives.
UNWRITTEN = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (``sys.argv`` without ``arguments``); the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = _carried_out(given)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except OSError as error:
        if error.filename is not None or error.errno not in UNWRITTEN:
            raise
        return _unwritten(error, alone=arguments is None)
    return code


def _carried_out(given: Sequence[str]) -> int:
    try:
        return commands.carry_out(given)
    except CannotRun as error:
        message = advice.reachable(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("jetson_mamba", "vendored_overrides"):
            raise
        message = f"jetson_mamba is not installed whole ({error}); {advice.repair()}"
    _fail(message, 2)
    commands.tell_as_json(given, message)
    return 2


def _unwritten(error: OSError, alone: bool) -> int:
    """The end of a command whose output cannot be written, which is as other tools' is.

    ``alone``: the process is this command's, and may end by the signal.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        # What is still buffered would fail again, and be told of, at the end of the process.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
    if error.errno != errno.EPIPE:
        return _fail(f"standard output: {error.strerror}", 2)
    if alone and hasattr(signal, "SIGPIPE"):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGPIPE)
    return 141


def _fail(message: str, code: int) -> int:
    with contextlib.suppress(OSError):
        print(f"jetson-mamba: {' '.join(message.split())}", file=sys.stderr)
    return code
