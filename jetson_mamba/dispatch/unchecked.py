"""Calls an op in place of a function of unknown text, only where its own code cannot run.

Such a function may compute something else than the op of its name, so its own code runs wherever
Triton has kernels for the device. Elsewhere the op serves, and one warning says so.
"""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from typing import Any, Callable, Mapping

import torch
from torch import Tensor

from jetson_mamba.dispatch.triton_runs import counts_while_compiling, triton_runs_on

from .launchers import hand_over
from .operators import is_compiling

# What may be compared with a default without asking a tensor.
PLAIN = (bool, int, float, str, tuple, torch.dtype)
_said: set[str] = set()


def unchecked(
    own: Callable[..., Any], op: Callable[..., Any], name: str, *order: str
) -> Callable[..., Any]:
    """``own`` where Triton has kernels for the device of its first tensor, ``op`` elsewhere.

    ``name`` is what the module that calls this has bound to ``own``. The op is given every argument
    by name, with the defaults of ``own``. Where that takes any number of arguments by position,
    they are called as in ``order``, or as the op calls them. What is returned has the signature
    and the source of ``own``, and is found by pickle as that is.

    Raises TypeError, where the op serves, for an argument that the op does not know unless it is
    the default of ``own``.
    """
    if not callable(own):
        return own
    hand_over(own, op)
    module = sys._getframe(1).f_globals.get("__name__", "")
    parameters = _parameters(own)
    by_position = [
        name
        for name, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    defaults = {
        name: parameter.default
        for name, parameter in parameters.items()
        if parameter.default is not parameter.empty
    }
    taken = tuple(inspect.signature(op).parameters)
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters.values()):
        names = list(order or taken)
        if names[: len(by_position)] == by_position:
            by_position = names

    @functools.wraps(own)
    def dispatched(*arguments: Any, **keywords: Any) -> Any:
        device = _device(arguments, keywords)
        if device is None or _runs(device):
            return own(*arguments, **keywords)
        if len(arguments) > len(by_position):
            raise TypeError(
                f"{name}: expected at most {len(by_position)} arguments by position, found "
                f"{len(arguments)}; its text is none that was checked, and on {device.type} "
                "jetson_mamba computes it"
            )
        given = {**defaults, **dict(zip(by_position, arguments)), **keywords}
        for each, value in given.items():
            if each not in taken and not _is_default(value, defaults, each):
                raise TypeError(
                    f"{name}: {each}: expected its default, found {type(value).__name__}; the "
                    f"text of this function is none that was checked, and on {device.type} "
                    f"jetson_mamba computes it, which does not know that argument"
                )
        _say(name, module, device.type)
        return op(**{each: value for each, value in given.items() if each in taken})

    return dispatched


@functools.lru_cache(maxsize=None)
def by_name(op: Callable[..., Any], *names: str) -> Callable[..., Any]:
    """``op``, called with arguments in the order of ``names``."""

    def named(*arguments: Any) -> Any:
        return op(**dict(zip(names, arguments)))

    return named


def _parameters(own: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """The parameters, those of any callable where they cannot be told."""
    try:
        return inspect.signature(own).parameters
    except (TypeError, ValueError):
        return inspect.signature(lambda *arguments, **keywords: None).parameters


def _runs(device: torch.device) -> bool:
    return counts_while_compiling(device.type) if is_compiling() else triton_runs_on(device)


def _device(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> torch.device | None:
    for value in (*arguments, *keywords.values()):
        if isinstance(value, Tensor):
            return value.device
    return None


def _is_default(value: Any, defaults: dict[str, Any], name: str) -> bool:
    if name not in defaults:
        return False
    default = defaults[name]
    return value is default or (
        isinstance(value, PLAIN) and isinstance(default, PLAIN) and bool(value == default)
    )


def _say(name: str, module: str, device: str) -> None:
    if name in _said:
        return
    _said.add(name)
    warnings.warn(
        f"{module}.{name} stays as it is installed, since its text is none that was checked; but "
        f"Triton has no kernels for {device}, so there jetson_mamba computes what the releases of "
        "mamba-ssm do under that name. What to do: compare with results from a GPU.",
        RuntimeWarning,
        stacklevel=3,
    )


# While a graph is traced this is run, and not looked into.
_say._dynamo_marked_constant = True  # type: ignore[attr-defined]
