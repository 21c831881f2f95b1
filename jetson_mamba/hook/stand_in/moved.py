"""The norms under the name that they have in other releases of mamba-ssm.

To 1.2 the module is ``layernorm``, from 2.0 on ``layer_norm``, and code for one of them meets the
other. Each function takes its arguments in the order that belongs to the module's name.
"""

from __future__ import annotations

import functools
import inspect
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Callable

from jetson_mamba.finder import Finder
from jetson_mamba.hook.loader import Loader

OLD, NEW = "mamba_ssm.ops.triton.layernorm", "mamba_ssm.ops.triton.layer_norm"
OTHER_NAME = {OLD: NEW, NEW: OLD}
_FIRST = ("x", "weight", "bias", "residual")
_NEW_MIDDLE = ("x1", "weight1", "bias1", "eps", "dropout_p", "rowscale")
_NEW_FIRST = (*_FIRST, *_NEW_MIDDLE, "prenorm", "residual_in_fp32")
# The parameters of each function in the module of a name, in its order.
PARAMETERS = {
    (OLD, "layer_norm_fn"): (*_FIRST, "eps", "prenorm", "residual_in_fp32", "is_rms_norm"),
    (OLD, "rms_norm_fn"): (*_FIRST, "prenorm", "residual_in_fp32", "eps"),
    (NEW, "layer_norm_fn"): (*_NEW_FIRST, "is_rms_norm", "return_dropout_mask"),
    (NEW, "rms_norm_fn"): (*_NEW_FIRST, "return_dropout_mask"),
}


def spec(finder: Finder, name: str) -> ModuleSpec:
    """The spec of a module of that name which is the other one."""
    found = ModuleSpec(name, None)
    found.loader = MovedLoader(finder, found, name)  # type: ignore[assignment]
    return found


class MovedLoader(Loader):
    """Fills a module with what the one of the other name has."""

    def __init__(self, finder: Finder, spec: ModuleSpec, target: str) -> None:
        super().__init__(finder, spec, target)
        self.other = OTHER_NAME[target]
        self.outcome = f"this release has {self.other} in its place"

    def exec_module(self, module: ModuleType) -> None:
        """Import the other module, and give this one its names."""
        for name, value in vars(import_module(self.other)).items():
            if not name.startswith("__"):
                setattr(module, name, value)
        for (name, function), order in PARAMETERS.items():
            if name == self.target and hasattr(module, function):
                setattr(module, function, _in_order(getattr(module, function), order))
        self.finder.outcomes[self.target] = self.outcome


def _in_order(function: Callable[..., Any], order: tuple[str, ...]) -> Callable[..., Any]:
    """``function`` with its arguments in an ``order``.

    What it does not have may be given as the nothing that is its default; else it is a TypeError.
    """
    known = inspect.signature(function).parameters

    @functools.wraps(function)
    def ordered(*args: Any, **keywords: Any) -> Any:
        if len(args) > len(order):
            raise TypeError(
                f"{function.__name__}: expected at most {len(order)} arguments, found {len(args)}"
            )
        given = {**dict(zip(order, args)), **keywords}
        if len(given) < len(args) + len(keywords):
            twice = next(name for name in order[: len(args)] if name in keywords)
            raise TypeError(f"{function.__name__}: found {twice} twice")
        return function(
            **{
                name: value
                for name, value in given.items()
                if name in known
                or not (value is None or (type(value) in (bool, float) and not value))
            }
        )

    del vars(ordered)["__wrapped__"]  # whose signature is the other one
    return ordered
