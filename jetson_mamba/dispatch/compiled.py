"""The compiled extensions that are installed, by name: what backends of several ops import."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from jetson_mamba.errors import Unavailable


def compiled_module(name: str) -> Any:
    """The extension ``name``. It needs torch's libraries, which importing torch has loaded.

    Raises :class:`Unavailable` where none is installed; where one is that cannot be imported, an
    ImportError. What stands in for one calls the ops itself, and is none.
    """
    try:
        module = import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise Unavailable(f"{name} is not installed") from None
    reason = getattr(module, "__jetson_mamba_reason__", "")
    if reason is None:
        raise Unavailable(f"{name} is not installed")
    if reason:
        raise ImportError(reason.partition(": ")[2])
    return module
