"""Leads the calls of a function that launches Triton kernels past them where they cannot run.

A modified copy wraps such a function when the module is complete: what it defines, and the
source that Triton reads, stay upstream's own.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, Callable

from jetson_mamba.dispatch.triton_runs import counts_while_compiling, triton_runs_on

from .paths import Way, is_batched, is_compiling, way


def where_triton_runs(
    function: Callable[..., Any], otherwise: Callable[..., Any]
) -> Callable[..., Any]:
    """``function`` where Triton kernels can be launched, ``otherwise`` everywhere else.

    Both take the same tensor first, which decides: by its device, and by what looks at it. A launch
    is invisible to a transform, a mode or a trace, and reads addresses that fake and meta tensors
    do not have. What is returned has the name, the signature and the source of ``function``, and is
    found by pickle under its name.

    While a graph is traced by ``torch.compile``, which what Triton is asked would break,
    ``counts_while_compiling`` says whether kernels are part of it.
    """
    first = next(iter(inspect.signature(otherwise).parameters))

    @functools.wraps(function)
    def dispatched(*arguments: Any, **keywords: Any) -> Any:
        tensor = arguments[0] if arguments else keywords.get(first)
        if tensor is None:
            runs = True  # the function itself says what is wrong
        elif is_compiling():
            runs = counts_while_compiling(tensor.device.type)
        else:
            runs = (
                way(tensor) is Way.KERNELS
                and triton_runs_on(tensor.device)
                and not is_batched(*arguments, *keywords.values())
            )
        return (function if runs else otherwise)(*arguments, **keywords)

    return dispatched
