"""The modules of upstream that launch kernels, as the modified copies hand them over.

An op may launch upstream's own kernels. A copy says where they are while it is imported, so no op
looks for mamba_ssm by itself.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping

from .selection import OPS

_handed_over: dict[str, Mapping[str, Any]] = {}


def hand_over(function: Callable[..., Any], op: Callable[..., Any]) -> None:
    """Let an op have what the module of ``function`` has, which it stands in for.

    The first module is kept, also where that is loaded anew. What was decided without it is
    decided again.
    """
    names = getattr(function, "__globals__", None)
    if names is not None and _handed_over.setdefault(op.__name__, names) is names:
        for each in OPS.values():
            if "triton" in each.order:
                each.forget()


def launchers_of(op: str) -> Mapping[str, Any] | None:
    """The names of the module that was handed over to the op of a name; None if none was."""
    return _handed_over.get(op)
