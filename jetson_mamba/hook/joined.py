"""Joins modules of transformers, which have run as they are, to the ops."""

from __future__ import annotations

import sys
from functools import wraps
from importlib import import_module
from types import ModuleType
from typing import Any

# Where transformers looks up the functions of other packages, each by its name in a path.
RESOLVER = "resolve_internal_import"
# The packages, and what each needs to be imported without the hook.
PACKAGES = {"mamba_ssm": "selective_scan_cuda", "causal_conv1d": "causal_conv1d_cuda"}


def join(module: ModuleType) -> None:
    """Join what is in a module: its mixers, or the functions that it finds for others."""
    if RESOLVER in vars(module):
        _find_those_with_gradients(module)
    elif "mamba_ssm" in sys.modules:
        _of_ops("decoding.mixers").join(module)


def _find_those_with_gradients(module: Any) -> None:
    resolve = getattr(module, RESOLVER)

    @wraps(resolve)
    def found(package: Any, path: str) -> Any:
        function = resolve(package, path)
        name = getattr(package, "__name__", None)
        if callable(function) and name in PACKAGES:
            with_gradients = _of_ops("decoding.recorded").with_gradients
            return with_gradients(path.rpartition(".")[2], function, _works(PACKAGES[name]))
        return function

    setattr(module, RESOLVER, found)


def _of_ops(name: str) -> Any:
    """A part of the ops, after the whole: another thread that imports that waits for its parts."""
    import_module("jetson_mamba.ops")
    return import_module(f"jetson_mamba.ops.{name}")


def _works(extension: str) -> bool:
    """Whether a compiled extension is there, with which its package needs no hook on a GPU."""
    try:
        from jetson_mamba.hook import stand_in

        return not stand_in.is_one(import_module(extension))
    except Exception:  # of whatever kind: it is of no use
        return False
