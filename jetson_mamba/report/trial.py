"""Runs a small block of each kind, as a program would.

Whatever would stop a program fails here too, also for a reason that no detector knows.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

# What a trial waits for: a first launch may compile kernels.
SECONDS = 300.0
# What is said of one that nobody waits for any more, and what that may mean.
NO_ANSWER = "no answer"
BUSY = "something waits, or this machine is slow or busy: ask again when it is idle"
WIDTH, SEQLEN = 16, 12
# The sizes of a block are small, and its heads as many as the kernels ask for.
BLOCKS: dict[str, dict[str, Any]] = {
    "Mamba": {"d_state": 8},
    "Mamba2": {"d_state": 16, "headdim": 4, "chunk_size": 16},
}
COMMAND = "from jetson_mamba.report import trial; print('version', trial.run())"


class Failed(Exception):
    """A block that does not run; the message says which, where, and why."""


def run() -> str:
    """The version of mamba_ssm, after a block of each kind has been run forward and backward.

    On a GPU, where there is one, Mamba-2 is left out: upstream's kernels are tuned there for each
    new size, which takes a minute. Raises what importing raises, and :class:`Failed`.
    """
    import mamba_ssm
    import torch

    on_gpu = bool(torch.cuda.is_available())
    for kind, sizes in BLOCKS.items():
        block = getattr(mamba_ssm, kind, None)
        if block is not None and not (on_gpu and kind != "Mamba"):
            _try(kind, block, sizes, "cuda" if on_gpu else "cpu")
    return str(getattr(mamba_ssm, "__version__", "of an unknown version"))


def _try(kind: str, block: Any, sizes: dict[str, Any], device: str) -> None:
    import torch

    where = f"a block of {kind} on {'the GPU' if device == 'cuda' else 'the CPU'}"
    try:
        torch.manual_seed(0)
        layer = block(WIDTH, **sizes).to(device)
        given = torch.randn(2, SEQLEN, WIDTH).to(device)
        out = layer(given)
        out.sum().backward()
        finite = bool(torch.isfinite(out).all())
        if device == "cuda":
            torch.cuda.synchronize()
    except Exception as error:
        raise Failed(f"{where} fails: {_words(error)}") from error
    if not finite:
        raise Failed(f"{where} gives numbers that are not finite")


def failure() -> str | None:
    """Why the trial fails in a process of its own; None if it does not."""
    return in_a_process()[1]


def in_a_process() -> tuple[str | None, str | None]:
    """The version that the trial gives in a process of its own, or the reason why it fails."""
    # A program that is started here does not find the command's folder on its path.
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    start = f"import sys; sys.path.append({own!r}); {COMMAND}"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", start],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"{NO_ANSWER} within {SECONDS:.0f} s"
    version = [line for line in done.stdout.splitlines() if line.startswith("version ")]
    if done.returncode == 0 and version:
        return version[-1][len("version ") :], None
    return None, _last_words(done.stderr) or f"it ended with {done.returncode}"


def _last_words(stderr: str) -> str:
    """What an uncaught exception says, its class first, without the names of modules before it."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    # The message may have several lines, of which the first names the class.
    for line in reversed(lines):
        name, colon, text = line.partition(": ")
        if colon and name.replace(".", "").replace("_", "").isalnum() and not line[0].isspace():
            kind = name.rpartition(".")[2]
            return text if kind == Failed.__name__ else f"{kind}: {text}"
    return lines[-1] if lines else ""


def _words(error: Exception) -> str:
    text = (str(error).strip() or "no message").splitlines()[0]
    return f"{type(error).__name__}: {text}"
