"""Joins modules of transformers, which have run as they are, to the ops."""

from __future__ import annotations

import sys
from functools import wraps
from types import ModuleType
from typing import Any

# Where transformers looks up the functions of other packages, each by its name in a path.
RESOLVER = "resolve_internal_import"
PACKAGES = ("mamba_ssm", "causal_conv1d")


def join(module: ModuleType) -> None:
    """Join what is in a module: its mixers, or the functions that it finds for others."""
    if RESOLVER in vars(module):
        _find_those_with_gradients(module)
    elif "mamba_ssm" in sys.modules:
        from jetson_mamba.ops.decoding import mixers

        mixers.join(module)


def _find_those_with_gradients(module: Any) -> None:
    resolve = getattr(module, RESOLVER)

    @wraps(resolve)
    def found(package: Any, path: str) -> Any:
        function = resolve(package, path)
        if callable(function) and getattr(package, "__name__", None) in PACKAGES:
            from jetson_mamba.ops.decoding.recorded import with_gradients

            return with_gradients(path.rpartition(".")[2], function)
        return function

    setattr(module, RESOLVER, found)
