"""Lets upstream's Triton kernels run on a CPU, slowly, under Triton's own interpreter.

``TRITON_INTERPRET=1`` must be in the environment before Triton is imported. What else a CPU
lacks is given to it here: a device to make current, the number of its processors, and one
configuration for each kernel in place of a search among many.
"""

from __future__ import annotations

import contextlib
import dataclasses
from types import SimpleNamespace
from typing import Any, Iterator


@contextlib.contextmanager
def _no_device(*_: object) -> Iterator[None]:
    yield


def prepare() -> None:
    """Do it for this process."""
    import torch
    from triton.runtime.autotuner import Autotuner

    torch.cuda.device = _no_device  # type: ignore[assignment, misc]
    torch.cuda.get_device_properties = lambda *_: SimpleNamespace(  # type: ignore[assignment]
        multi_processor_count=1
    )
    make = Autotuner.__init__

    def with_one_configuration(
        self: Any, fn: Any, names: Any, configs: Any, *rest: Any, **kw: Any
    ) -> None:
        make(self, fn, names, configs[:1], *rest, **kw)

    Autotuner.__init__ = with_one_configuration
    _compute_nothing_twice()


def _compute_nothing_twice() -> None:
    """Without what the interpreter computes of each sum and product of integers to look at no more.

    It is the same in 64 bits, for an assertion that kernels have under ``debug`` alone.
    """
    from triton.runtime import interpreter

    builder: Any = getattr(interpreter, "interpreter_builder", None)
    options: Any = getattr(builder, "options", None)
    if getattr(options, "sanitize_overflow", False) and not options.debug:
        builder.options = dataclasses.replace(options, sanitize_overflow=False)
