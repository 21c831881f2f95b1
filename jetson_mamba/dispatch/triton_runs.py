"""Whether upstream's Triton kernels can run on a device, found out once for each device.

On a device that they are made for, a small kernel is launched first. Where that fails, as it does
if Triton's compiler does not know the GPU or finds no C compiler, no op uses Triton.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch

from jetson_mamba import forks, triton_there
from jetson_mamba.dispatch.apart import Apart
from jetson_mamba.dispatch.passing import passing

# Triton generates code for NVIDIA GPUs from this compute capability on.
LEAST_CAPABILITY = (7, 0)


def triton_runs_on(device: torch.device) -> bool:
    """Whether Triton kernels can run on tensors of ``device``.

    They run on a CUDA device of compute capability 7.0 or more (any ROCm device) on which a first
    launch goes well, and under Triton's interpreter on every device. The answer is kept: kernels
    are bound to the compiler or to the interpreter when their module is imported, so asking again
    would mislead. Where a first launch fails, one warning says of what.
    """
    answer = _answers.known.get(device)
    return _answers.find(device) if answer is None else answer


# While a graph is traced this is run, and not looked into: it may be the first to ask.
triton_runs_on._dynamo_marked_constant = True  # type: ignore[attr-defined]


def counts_while_compiling(kind: str) -> bool:
    """Whether a graph that is traced for a kind of device may launch Triton kernels.

    A compiler that traces for a GPU generates Triton kernels itself; so every GPU counts, here or
    elsewhere, unless it is known here that none runs.
    """
    if kind != "cuda" or not triton_there.is_importable():
        return False
    if not torch.cuda.is_available():
        return True
    return triton_runs_on(torch.device("cuda", torch.cuda.current_device()))


# As above.
counts_while_compiling._dynamo_marked_constant = True  # type: ignore[attr-defined]


class _Answers:
    """What was found out in this process."""

    lock: Any

    def __init__(self) -> None:
        self.known: dict[torch.device, bool] = {}
        self._said = False
        forks.lock(self, "lock")

    def find(self, device: torch.device) -> bool:
        """The answer, kept unless what failed may go well at the next call."""
        with self.lock:
            if device in self.known:
                return self.known[device]
            answer = _should_run_on(device)
            if answer and device.type == "cuda" and not _is_interpreted():
                if torch.cuda.is_current_stream_capturing():
                    return True  # nothing may be tried now
                try:
                    _launch(device)
                except Exception as error:  # whatever a driver, a compiler or a file raises
                    if passing(error) is not None:
                        return True
                    answer = False
                    self._say(device, error)
            self.known[device] = answer
            return answer

    def _say(self, device: torch.device, error: Exception) -> None:
        if self._said:
            return
        self._said = True
        line = next((each for each in str(error).splitlines() if each.strip()), "")
        warnings.warn(
            f"Triton launches nothing on {device} ({type(error).__name__}: {line.strip()}), so "
            "what its kernels would compute there is computed by jetson_mamba, with PyTorch. What "
            "to do: see that a C compiler is on the PATH, and that the Triton that is installed "
            "knows this GPU.",
            RuntimeWarning,
            stacklevel=4,
        )


def _should_run_on(device: torch.device) -> bool:
    if not triton_there.is_importable():
        return False
    if _is_interpreted():
        return True
    if device.type != "cuda" or not torch.cuda.is_available():
        return False
    if torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= LEAST_CAPABILITY


def _is_interpreted() -> bool:
    import triton

    if hasattr(triton, "knobs"):  # Triton 3.4 and later
        return bool(triton.knobs.runtime.interpret)
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _launch(device: torch.device) -> None:
    """Launch a small kernel, in a thread of its own; raises what that raises."""

    def launched() -> None:
        from .triton_trial import launch

        launch(device)

    trial = Apart(launched)
    trial.start()
    trial.result()


_answers = _Answers()
