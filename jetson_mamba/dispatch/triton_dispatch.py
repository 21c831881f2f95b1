"""Sends calls of functions that launch upstream's kernels to an op where those cannot run.

A modified copy wraps such a function when the module is complete: what it defines, and the
source that Triton reads, stay upstream's own.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from typing import Any, Callable

import torch

from jetson_mamba import kernel_packages
from jetson_mamba.dispatch.triton_runs import counts_while_compiling, triton_runs_on

from .launchers import hand_over
from .passing import passing
from .paths import Way, is_batched, is_compiling, way

# What says that a call is wrong, and not the kernels.
OF_A_CALL = (AssertionError, TypeError, ValueError)


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
    hand_over(function, otherwise)
    return _dispatched(function, otherwise, counts_while_compiling, triton_runs_on, function)


def on_a_gpu(
    function: Callable[..., Any], otherwise: Callable[..., Any], *languages: str
) -> Callable[..., Any]:
    """As :func:`where_triton_runs`, of a function whose kernels are for CUDA and made for few GPUs.

    ``languages`` of :mod:`jetson_mamba.kernel_packages` are what its kernels are written in beside
    Triton. Where the first call on a device fails of something else than its arguments,
    ``otherwise`` serves there from then on, and one warning says so.
    """
    there = all(map(kernel_packages.is_importable, languages))
    tried: dict[torch.device, bool] = {}

    def runs(device: torch.device) -> bool:
        return (
            there
            and device.type == "cuda"
            and torch.version.hip is None
            and tried.get(device, True)
            and triton_runs_on(device)
        )

    @functools.wraps(function)
    def attempted(*arguments: Any, **keywords: Any) -> Any:
        given = (*arguments, *keywords.values())
        device = next(each.device for each in given if isinstance(each, torch.Tensor))
        if device in tried or is_compiling():
            return function(*arguments, **keywords)
        try:
            result = function(*arguments, **keywords)
        except OF_A_CALL:
            raise
        except Exception as error:  # whatever a compiler or a driver raises
            if passing(error) is not None:
                raise
            tried[device] = False
            warnings.warn(
                f"{function.__module__}.{function.__name__} cannot run on {device} "
                f"({type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]})"
                ", so what it computes is computed there by jetson_mamba, with PyTorch. What to "
                "do: use a GPU that its kernels are made for, or leave it at that.",
                RuntimeWarning,
                stacklevel=4,
            )
            return otherwise(*arguments, **keywords)
        tried[device] = True
        return result

    def counts(kind: str) -> bool:
        return there and counts_while_compiling(kind)

    counts._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return _dispatched(function, otherwise, counts, runs, attempted)


def _dispatched(
    function: Callable[..., Any],
    otherwise: Callable[..., Any],
    counts: Callable[[str], bool],
    runs_on: Callable[[torch.device], bool],
    where_it_runs: Callable[..., Any],
) -> Callable[..., Any]:
    """``function`` as ``where_it_runs`` does it, or ``otherwise``."""
    first = next(iter(inspect.signature(otherwise).parameters))

    @functools.wraps(function)
    def dispatched(*arguments: Any, **keywords: Any) -> Any:
        tensor = arguments[0] if arguments else keywords.get(first)
        if tensor is None:
            runs = True  # the function itself says what is wrong
        elif is_compiling():
            runs = counts(tensor.device.type)
        else:
            runs = (
                way(tensor) is Way.KERNELS
                and runs_on(tensor.device)
                and not is_batched(*arguments, *keywords.values())
            )
        return (where_it_runs if runs else otherwise)(*arguments, **keywords)

    return dispatched
