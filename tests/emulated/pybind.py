"""A function as pybind11 makes it. It is strict about its arguments, and lists them in its doc."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable

import torch

from . import CUDA_ONLY, NO_KERNEL_IMAGE

TENSOR = "torch.Tensor"
OPTIONAL = "Optional[torch.Tensor]"
BOOL = "bool"


class Function:
    """``implementation`` behind the checks that pybind11 makes before a call.

    It knows parameters by position only, because the extensions name none.
    """

    def __init__(
        self,
        name: str,
        kinds: tuple[str, ...],
        returns: str,
        implementation: Callable[..., Any],
        failure: str | None,
    ) -> None:
        listed = ", ".join(f"arg{index}: {kind}" for index, kind in enumerate(kinds))
        self.__name__ = name
        self.__doc__ = f"{name}({listed}) -> {returns}\n\nEmulated {name}\n"
        self._signature = f"({listed}) -> {returns}"
        self._kinds = kinds
        self._implementation = implementation
        self._failure = failure

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Check the arguments, then compute."""
        if (
            keywords
            or len(arguments) != len(self._kinds)
            or not all(map(_is_of_kind, arguments, self._kinds))
        ):
            raise TypeError(
                f"{self.__name__}(): incompatible function arguments. The following argument "
                f"types are supported:\n    1. {self._signature}\n\nInvoked with: "
                + ", ".join(type(argument).__name__ for argument in arguments)
            )
        if self._failure == NO_KERNEL_IMAGE:
            raise RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\n"
                "CUDA kernel errors might be asynchronously reported at some other API call"
            )
        if self._failure == CUDA_ONLY:
            check(arguments[0].is_cuda, "x.is_cuda()")
        # Nothing is recorded for autograd behind pybind11.
        with torch.no_grad():
            return self._implementation(*arguments)


def differentiable(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` in a thread of its own, where autograd works.

    An extension is also called from beneath ``torch.library``'s operators, where the thread
    records nothing, whatever ``enable_grad`` says.
    """

    @torch.no_grad()
    def quietly(*arguments: Any, **keywords: Any) -> Any:
        return function(*arguments, **keywords)

    def run(*arguments: Any, **keywords: Any) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(quietly, *arguments, **keywords).result()

    return run


def check(condition: bool, text: str, message: str | None = None) -> None:
    """``TORCH_CHECK``: a RuntimeError in its words."""
    if not condition:
        raise RuntimeError(message or f"Expected {text} to be true, but got false.")


def check_shape(name: str, tensor: torch.Tensor, *shape: int) -> None:
    """``CHECK_SHAPE`` of the extensions."""
    check(tuple(tensor.shape) == shape, "", f"{name} must have shape {shape}")


def _is_of_kind(argument: Any, kind: str) -> bool:
    if kind == TENSOR:
        return isinstance(argument, torch.Tensor)
    if kind == OPTIONAL:
        return argument is None or isinstance(argument, torch.Tensor)
    # What has a truth value of its own converts, None too.
    return argument is None or hasattr(type(argument), "__bool__")
