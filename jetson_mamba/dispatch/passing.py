"""Errors that pass: what failed for want of something that may be there at the next call.

They say nothing about what was tried: a GPU without room in that moment, a process without a file
or a thread to spare.
"""

from __future__ import annotations

import errno

import torch

_PASSING_NUMBERS = frozenset(
    getattr(errno, name)
    for name in ("EAGAIN", "EBUSY", "EINTR", "EMFILE", "ENFILE", "ENOBUFS", "ENOMEM", "ENOSPC")
)
_KINDS: tuple[type[BaseException], ...] = (
    MemoryError,
    BlockingIOError,
    InterruptedError,
    TimeoutError,
    torch.cuda.OutOfMemoryError,
    *([torch.OutOfMemoryError] if hasattr(torch, "OutOfMemoryError") else []),  # torch 2.5
)
# As the driver, the libraries of CUDA, torch and the C library word them, in small letters.
_WORDS = (
    "out of memory",
    "out_of_memory",
    "outofmemory",
    "memoryallocation",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate",
    "alloc_failed",
    "bad_alloc",
    # cuBLAS, where it finds no room for its workspace
    "cublas_status_not_initialized",
    "busy or unavailable",
    "device busy",
    "device or resource busy",
    "start new thread",
    "new thread at interpreter shutdown",
    "resource temporarily unavailable",
    "too many open files",
    "no space left on device",
)
# What lacks room of a size that is fixed when the process starts never finds any.
_LASTING = ("static tls",)


def passing(error: BaseException | None) -> BaseException | None:
    """The error that may not come at the next call: this, or one it was raised from; else None."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if _passes(error):
            return error
        seen.add(id(error))
        error = error.__cause__
    return None


def _passes(error: BaseException) -> bool:
    message = str(error).lower()
    if any(words in message for words in _LASTING):
        return False
    return (
        isinstance(error, _KINDS)
        or (isinstance(error, OSError) and error.errno in _PASSING_NUMBERS)
        or any(words in message for words in _WORDS)
    )
