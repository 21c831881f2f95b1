"""Runs requests in processes that are forked from one that has everything heavy imported.

A module that answers requests calls :func:`serve` as its main program; whoever has requests keeps
:class:`Workers` with that module's name. Requests and answers are JSON, one on a line.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from queue import Queue
from types import MappingProxyType
from typing import Any, Callable, Mapping, Sequence

from tests import interpreters

REPOSITORY = Path(__file__).resolve().parent.parent
# One takes a few seconds; one that hangs is a failure, not a run that never ends.
SECONDS_FOR_A_REQUEST = 180


class Workers:
    """Processes of a module that answer requests; a context that ends them.

    ``options`` are those of the interpreter, and ``environment`` is what differs of its own.
    """

    def __init__(
        self,
        module: str,
        cache: Path,
        processes: int = 2,
        options: Sequence[str] = (),
        environment: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._processes = processes
        self._idle: Queue[subprocess.Popen[str]] = Queue()
        for _ in range(processes):
            self._idle.put(_worker(module, cache, options, environment))

    def run(
        self,
        requests: Sequence[Any],
        done: Callable[[int, Any], None],
        seconds: float = math.inf,
    ) -> None:
        """Run every request and hand over its place and each answer as it comes.

        None is begun after so many seconds.
        """
        start = time.monotonic()

        def one(place: int) -> None:
            if time.monotonic() - start > seconds:
                return
            worker = self._idle.get()
            try:
                assert worker.stdin is not None and worker.stdout is not None
                worker.stdin.write(json.dumps(requests[place]) + "\n")
                worker.stdin.flush()
                answer = json.loads(worker.stdout.readline())
            finally:
                self._idle.put(worker)
            done(place, answer)

        with ThreadPoolExecutor(self._processes) as pool:
            for finished in [pool.submit(one, place) for place in range(len(requests))]:
                finished.result()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: object) -> None:
        while not self._idle.empty():
            worker = self._idle.get()
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()


def _worker(
    module: str, cache: Path, options: Sequence[str], environment: Mapping[str, str]
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *options, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        env={
            **{name: value for name, value in os.environ.items() if "JETSON_MAMBA" not in name},
            "TRITON_INTERPRET": "1",
            "JETSON_MAMBA_CACHE": str(cache),
            # The threads of one process would not survive the fork.
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    )


def serve(run: Callable[[Any], Any], ended: Callable[[int], Any]) -> None:
    """Answer each request on the standard input by what ``run`` returns in a process of its own.

    ``ended`` is the answer for a process that ends otherwise, of its wait status.
    """
    gc.set_threshold(*interpreters.SELDOM)
    import einops
    import torch
    import torch._dynamo  # what the first backward pass of an autograd function imports
    from transformers.generation.streamers import TextStreamer
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    import jetson_mamba.ops

    heavy = (einops, torch, TextStreamer, GenerateDecoderOnlyOutput, jetson_mamba.ops)
    assert all(heavy)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if find_spec("triton") is not None:
        from tests.releases import triton_on_cpu

        triton_on_cpu.prepare()
    # Else every child would copy what its collector looks at.
    gc.freeze()
    for line in sys.stdin:
        answer = in_a_fork(partial(run, json.loads(line)), ended)
        print(json.dumps(answer), flush=True)


def in_a_fork(run: Callable[[], Any], ended: Callable[[int], Any]) -> Any:
    """What ``run`` returns in a process of its own, through JSON; else ``ended`` of its status."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        signal.alarm(SECONDS_FOR_A_REQUEST)
        # What upstream prints is no answer.
        os.dup2(2, 1)
        with os.fdopen(writer, "w") as pipe:
            json.dump(run(), pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        answer = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(answer) if status == 0 and answer else ended(status)
