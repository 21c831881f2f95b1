"""Runs rows in processes that are forked from one that has everything heavy imported.

``python -m tests.joints.workers FOLDER`` reads a row per line, as JSON, writes what came of it to
FOLDER, and answers with a line when it is there. Each row has a process of its own: whatever it
leaves behind, settings or a crash, no other row sees.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, Iterable, NamedTuple

from tests import interpreters
from tools.releases import release_path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
RELEASE = "2.3.2.post1"
SECONDS_FOR_A_ROW = 240
# How a warning of the project can be told from torch's.
OWN_WORDS = "jetson"


class Row(NamedTuple):
    """A joint with a subject; ``exact`` where half precision is left out."""

    joint: str
    subject: str
    exact: bool = False


class Outcome(NamedTuple):
    """What came of a row: results by name, or the kind of error and its message.

    ``checked``: how often it held something against something itself.
    """

    results: dict[str, Any]
    error: str | None
    message: str
    warnings: tuple[str, ...]
    seconds: float
    checked: int = 0


class Workers:
    """A process with the hook, and one without."""

    def __init__(self, cache: Path) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._processes = {hook: self._start(cache, hook) for hook in (True, False)}

    def _start(self, cache: Path, hook: bool) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name}
        return subprocess.Popen(
            # The hook is activated first, where no startup file has seen to it.
            [
                *(sys.executable, "-W", "ignore", "-c"),
                "import sys, jetson_mamba; from tests.joints import workers; "
                "workers.answer(sys.argv[1], sys.stdin)",
                self._folder.name,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={
                **kept,
                "PYTHONPATH": os.pathsep.join((str(release_path(RELEASE)), str(REPOSITORY))),
                "JETSON_MAMBA": "on" if hook else "off",
                "JETSON_MAMBA_CACHE": str(cache),
                "HF_HUB_OFFLINE": "1",
                # The threads of one process would not survive the fork.
                "OMP_NUM_THREADS": "1",
            },
        )

    def run(self, row: Row, hook: bool) -> Outcome:
        """Run a row, with the hook or without."""
        import torch

        process = self._processes[hook]
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(row) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process {'with' if hook else 'without'} the hook has ended")
        answer = json.loads(line)
        results = {}
        if answer.pop("results"):
            results = torch.load(Path(self._folder.name) / f"{process.pid}.pt", weights_only=False)
        return Outcome(results, **{**answer, "warnings": tuple(answer["warnings"])})

    def close(self) -> None:
        """End both processes."""
        for process in self._processes.values():
            assert process.stdin is not None and process.stdout is not None
            process.stdin.close()
            process.wait()
            process.stdout.close()
        self._folder.cleanup()


def answer(folder: str, lines: Iterable[str]) -> None:
    """Run the rows that the lines name."""
    gc.set_threshold(*interpreters.SELDOM)
    import torch

    from tests.joints.declared import joints
    from tests.joints.subjects import prepare

    torch.set_num_threads(1)
    import logging

    logging.disable(logging.CRITICAL)
    prepare()
    joints()
    # Else every child would copy what its collector looks at.
    gc.freeze()
    pipe = os.dup(1)
    os.dup2(2, 1)  # what a row prints is none of the answers
    with os.fdopen(pipe, "w") as out:
        for line in lines:
            print(_in_a_process(folder, Row(*json.loads(line))), file=out, flush=True)


def _in_a_process(folder: str, row: Row) -> str:
    start = time.monotonic()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(SECONDS_FOR_A_ROW)
        answer = _run(Path(folder) / f"{os.getppid()}.pt", row)
        with os.fdopen(writer, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    said = {"error": "the process ended", "message": f"status {status}", "warnings": []}
    answer = json.loads(text) if text else {"results": False, **said}
    return json.dumps({**answer, "seconds": round(time.monotonic() - start, 2)})


def _run(path: Path, row: Row) -> dict[str, Any]:
    import torch

    from tests.joints.declared import joints
    from tests.joints.measures import CHECKED
    from tests.joints.subjects import Subject

    error, message, results = None, "", {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = joints()[row.joint].run(Subject(row.subject, exact=row.exact))
            results = {
                name: value.detach().clone() if isinstance(value, torch.Tensor) else value
                for name, value in found.items()
            }
        except Exception as raised:
            error, message = type(raised).__name__, str(raised)[:2000]
    torch.save(results, path)
    said = {f"{each.category.__name__}: {str(each.message)[:300]}" for each in caught}
    kept = {"results": bool(results), "checked": len(CHECKED)}
    return {**kept, "error": error, "message": message, "warnings": sorted(said)}
