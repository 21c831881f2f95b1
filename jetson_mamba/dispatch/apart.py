"""Runs a function apart from whatever its caller has set up around itself.

A backend is tried when a call first asks for it, and that call may stand anywhere: under autocast,
in inference mode, in a transform of ``torch.func``, under a mode that counts or fakes tensors, in a
trace, with another default device. The trial must see nothing of this, and nothing must see the
trial. All of it belongs to the thread; so the trial has a thread of its own.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import Future
from contextlib import ExitStack, nullcontext
from typing import Any, Callable, ContextManager, Generic, TypeVar

import torch

Result = TypeVar("Result")


class Apart(Generic[Result]):
    """A call of ``function`` that has been started; any number of threads may wait for it."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._future: Future[Result] = Future()
        self._process = os.getpid()
        self._function = function
        self._thread: int | None = None
        self._worker: threading.Thread | None = None

    def start(self) -> None:
        """Start it; returns at once, or when all is over where no thread is to be had."""
        device = torch.cuda.current_device() if torch.cuda.is_initialized() else None
        if not _is_importing():
            thread = threading.Thread(
                target=self._run, args=(device,), name="jetson_mamba", daemon=True
            )
            try:
                thread.start()
            except (RuntimeError, MemoryError):  # too many, or the interpreter is at its end
                pass
            else:
                self._worker = thread
                return
        with everything_off():
            self._run(None)

    def is_over(self) -> bool:
        """Whether the function has returned or raised."""
        return self._future.done()

    def is_lost(self) -> bool:
        """Whether it never will: it was to, in the process that this one was forked from."""
        return self._process != os.getpid() and not self.is_over()

    def result(self) -> Result:
        """What the function returns, or raises, once it has."""
        if self._thread == threading.get_ident() and not self._future.done():
            raise RuntimeError("a backend asks for itself while it is tried")
        try:
            return self._future.result()
        finally:
            # A thread at its end is one still, of which Python 3.12 warns who forks.
            if self._worker is not None and self.is_over():
                self._worker.join()

    def _run(self, device: int | None) -> None:
        self._thread = threading.get_ident()
        try:
            if device is None:
                result = self._function()
            else:
                with torch.cuda.device(device):
                    result = self._function()
        except BaseException as error:
            self._future.set_exception(error)
        else:
            self._future.set_result(result)


def _is_importing() -> bool:
    """Whether a module is being imported: if by this thread, another might wait for its end."""
    return any(
        getattr(getattr(module, "__spec__", None), "_initializing", False)
        for module in [*sys.modules.values()]
    )


def everything_off() -> ExitStack:
    """A context in which this thread computes as a new one would."""
    contexts: tuple[Callable[[], ContextManager[Any]], ...] = (
        torch._C.DisableTorchFunction,
        _without_transforms,
        _without_dispatch_modes,
        lambda: torch.inference_mode(False),
        torch.enable_grad,
        lambda: torch.autocast("cpu", enabled=False),
        lambda: torch.autocast("cuda", enabled=False),
    )
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context())
        return stack.pop_all()


def _without_transforms() -> ContextManager[Any]:
    try:
        from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
    except ImportError:  # before torch 2.1
        return nullcontext()
    return temporarily_clear_interpreter_stack()


def _without_dispatch_modes() -> ContextManager[Any]:
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()
