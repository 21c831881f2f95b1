"""Runs cells in processes that are forked from one that has everything heavy imported.

``python -m tests.matrix.workers`` reads a cell per line, as JSON, and answers each with a line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Callable, Iterable, Sequence

from tests.matrix.cell import Cell, Outcome, run

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# A cell takes a few seconds; one that hangs is a failure, not a matrix that never ends.
SECONDS_FOR_A_CELL = 180


def run_all(
    cells: Sequence[Cell], cache: Path, done: Callable[[Cell, Outcome], None], processes: int = 2
) -> None:
    """Run every cell and hand over each outcome as it comes."""
    workers: Queue[subprocess.Popen[str]] = Queue()
    for _ in range(processes):
        workers.put(_worker(cache))

    def one(cell: Cell) -> None:
        worker = workers.get()
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write(json.dumps(cell) + "\n")
        worker.stdin.flush()
        works, error, raised, said = json.loads(worker.stdout.readline())
        workers.put(worker)
        done(cell, Outcome(works, error, raised, tuple(said)))

    try:
        with ThreadPoolExecutor(processes) as pool:
            for finished in [pool.submit(one, cell) for cell in cells]:
                finished.result()
    finally:
        while not workers.empty():
            worker = workers.get()
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()
            assert worker.stdout is not None
            worker.stdout.close()


def _worker(cache: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "tests.matrix.workers"],
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
        },
    )


def _answer(lines: Iterable[str]) -> None:
    import einops
    import torch
    import triton
    from transformers.generation.streamers import TextStreamer
    from transformers.generation.utils import GenerateDecoderOnlyOutput

    import jetson_mamba.ops
    from tests.releases import triton_on_cpu

    heavy = (einops, torch, triton, TextStreamer, GenerateDecoderOnlyOutput, jetson_mamba.ops)
    assert all(heavy)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    triton_on_cpu.prepare()
    for line in lines:
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            with os.fdopen(writer, "w") as pipe:
                json.dump(run(Cell(*json.loads(line))), pipe)
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            answer = pipe.read()
        _, status = os.waitpid(child, 0)
        ended = Outcome(False, None, f"the process ended with status {status}", ())
        print(answer or json.dumps(ended), flush=True)


if __name__ == "__main__":
    _answer(sys.stdin)
