"""Leads the calls of a function that launches Triton kernels past them where they cannot run.

A modified copy wraps such a function when the module is complete: what it defines, and the
source that Triton reads, stay upstream's own.
"""

from __future__ import annotations

import functools
from typing import Any, Callable

from torch import Tensor

from .operators import is_compiling
from .ssd.triton_runs import triton_runs_on


def where_triton_runs(
    function: Callable[..., Any], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """``function`` on devices that Triton has kernels for, ``otherwise`` on all others.

    Both take the tensor ``state`` first, whose device decides. What is returned has the name, the
    signature and the source of ``function``, and is found by pickle under its name.

    While a graph is traced, which what Triton is asked would break, every GPU counts as one that
    it has kernels for: a compiler that traces for a GPU generates Triton kernels itself.
    """

    @functools.wraps(function)
    def dispatched(state: Tensor, *arguments: Any, **keywords: Any) -> Any:
        device = state.device
        runs = device.type == "cuda" if is_compiling() else triton_runs_on(device)
        return (function if runs else otherwise)(state, *arguments, **keywords)

    return dispatched
