"""Activations that no backend computes with the convolution, by the names that transformers has.

Its models hand on the one of their configuration, and without a causal-conv1d of whichever kind
they apply it themselves. So what has such a name here is applied to the convolution's output.
"""

from __future__ import annotations

import sys
from typing import Any, Callable

from torch import Tensor

_ELSE = ", or a name of an activation in transformers"
# Those that a backend computes with the convolution.
OWN = (None, "silu", "swish")


def named(activation: Any) -> Callable[[Tensor], Tensor]:
    """The function of an output that an activation is; ValueError for what is none."""
    functions = getattr(sys.modules.get("transformers.activations"), "ACT2FN", {})
    if not isinstance(activation, str) or activation not in functions:
        raise ValueError(
            f"activation: expected None, 'silu' or 'swish'{_ELSE if functions else ''}, "
            f"found {activation!r}"
        )
    function: Callable[[Tensor], Tensor] = functions[activation]
    return function
