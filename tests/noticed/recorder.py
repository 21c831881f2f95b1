"""Notes which lines of the package a process executes; the copy of the package imports it.

It stands alone in a folder, from which every process takes it, whatever its environment:
``current`` there is the test that runs, and a process leaves in ``records`` what it executed.
Beside it is the coverage of the environment of the tests, for interpreters that have none.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import coverage

FOLDER = Path(__file__).resolve().parent
CURRENT = FOLDER / "current"
RECORDS = FOLDER / "records"
# A process without a line of the package is none to warn of, nor one that traces itself.
UNWARNED = ["no-data-collected", "module-not-imported", "module-not-measured", "trace-changed"]

Lines = Dict[str, List[int]]


class Recorder:
    """The lines that this process has executed since they were last taken."""

    def __init__(self) -> None:
        self.coverage: Any = None
        self.begin()
        atexit.register(self.save)
        os.register_at_fork(after_in_child=self.begin)
        leave = os._exit

        def saved_first(code: int) -> Any:
            self.save()
            leave(code)

        os._exit = saved_first  # type: ignore[assignment]
        self.hide()

    def hide(self) -> None:
        """Let the package see no debugger: calls of which one sees each line are no graph's."""
        trace = sys.gettrace

        def hidden() -> Any:
            caller = sys._getframe(1).f_globals.get("__name__", "")
            return None if caller.startswith("jetson_mamba.") else trace()

        sys.gettrace = hidden

    def begin(self) -> None:
        """Start, in this process: one that was forked leaves to its parent what came before."""
        if self.coverage is not None:
            self.coverage.stop()
        self.test = CURRENT.read_text("utf-8") if CURRENT.exists() else ""
        self.coverage = coverage.Coverage(
            data_file=None, config_file=False, include=["*/jetson_mamba/*"], messages=False
        )
        self.coverage.set_option("run:disable_warnings", UNWARNED)
        self.coverage.start()

    def take(self) -> Lines:
        """What was executed, by the module's path in the package; from here on it starts anew."""
        self.coverage.stop()
        data = self.coverage.get_data()
        lines = {path: sorted(data.lines(path) or ()) for path in data.measured_files()}
        self.coverage.erase()
        self.coverage.start()
        return {path[path.rindex("jetson_mamba/") :]: each for path, each in lines.items()}

    def save(self) -> None:
        """Leave it for the process that runs the tests."""
        lines = self.take()
        self.coverage.stop()
        if lines and RECORDS.is_dir():
            file = RECORDS / f"{os.getpid()}-{time.monotonic_ns()}.json"
            partial = file.with_suffix(".part")
            partial.write_text(json.dumps([self.test, lines]), "utf-8")
            partial.replace(file)


recorder = Recorder()
