"""What the modules of mamba_ssm import as ``triton`` where no Triton can serve them.

Every name exists in this module. Decorators such as ``jit`` make kernels that cannot be launched,
and any other name is a :class:`Placeholder`. Only modified copies get to see it: it is in
``sys.modules`` under its own name, not as ``triton``.
"""

from __future__ import annotations

import functools
import inspect
import sys
from types import FunctionType
from typing import Any, Callable, NoReturn

from jetson_mamba import triton_there

# Upstream compares it with what a Triton that it knows has; this has nothing.
__version__ = "0.0.0"


class Placeholder:
    """Whatever a text takes of Triton, under its dotted name; calls and attributes give another."""

    def __init__(self, name: str) -> None:
        self.__name__ = self.__qualname__ = name

    def __getattr__(self, name: str) -> Placeholder:
        if name.startswith("__"):
            raise AttributeError(name)
        return Placeholder(f"{self.__name__}.{name}")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What this, as a decorator, makes of a function; of anything else another placeholder."""
        if len(arguments) == 1 and not keywords and _is_kernel(arguments[0]):
            return Kernel(arguments[0])
        return Placeholder(f"{self.__name__}(...)")

    def __getitem__(self, _: Any) -> Placeholder:
        return Placeholder(f"{self.__name__}[...]")

    # In annotations.
    __or__ = __ror__ = __getitem__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Placeholder) and other.__name__ == self.__name__

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __repr__(self) -> str:
        return f"<{self.__name__}, which is not there>"


class Kernel:
    """A function that Triton would compile: it can be looked at, and not be launched."""

    def __init__(self, kernel: Any, **told: Any) -> None:
        functools.update_wrapper(self, kernel)
        self.fn = kernel
        vars(self).update(told)

    def __getitem__(self, _: Any) -> Callable[..., NoReturn]:
        return self._launch

    def run(self, *_: Any, **__: Any) -> NoReturn:
        """Say that there is no Triton."""
        self._launch()

    warmup = __call__ = run

    def _launch(self, *_: Any, **__: Any) -> NoReturn:
        frame = sys._getframe(1)
        while frame.f_globals is globals() and frame.f_back is not None:
            frame = frame.f_back
        raise NoTriton(frame.f_globals.get("__name__", ""), frame.f_code.co_name)


class NoTriton(RuntimeError):
    """A function launches a Triton kernel that nothing takes the place of."""

    def __init__(self, module: str, function: str) -> None:
        super().__init__(module, function)
        self.module, self.function = module, function

    def __str__(self) -> str:
        return (
            f"{self.module}.{self.function} launches a Triton kernel, {triton_there.reason()}, and "
            "jetson_mamba has nothing that takes its place. It takes a GPU that Triton has kernels "
            f"for, and a Triton: {triton_there.advice()}."
        )


class Config:
    """A choice that a tuner would have."""

    def __init__(self, kwargs: dict[str, Any], **options: Any) -> None:
        self.kwargs = kwargs
        self.num_warps, self.num_stages, self.num_ctas = 4, 2, 1
        self.pre_hook: Any = None
        vars(self).update(options)


def jit(fn: Any = None, **_: Any) -> Any:
    """A kernel of a function, also as a decorator with arguments."""
    return Kernel if fn is None else Kernel(fn)


def autotune(configs: list[Any], key: Any = (), **_: Any) -> Callable[[Any], Kernel]:
    """A decorator that tells a kernel what a tuner would choose from, which upstream looks at."""
    return lambda kernel: Kernel(kernel, configs=configs, key=key)


def heuristics(values: Any) -> Callable[[Any], Kernel]:
    """A decorator that tells a kernel how to find some of its arguments."""
    return lambda kernel: Kernel(kernel, values=values)


def cdiv(x: int, y: int) -> int:
    """The least number of blocks of y that hold x."""
    return -(-x // y)


def next_power_of_2(n: int) -> int:
    """The least power of two that is not less than n."""
    return 1 << max(n - 1, 0).bit_length()


def set_allocator(_: Any) -> None:
    """Nothing: what is not launched allocates nothing."""


def explain(namespace: dict[str, Any]) -> None:
    """Let the functions of a module that launch its kernels say so, whatever they fail of before.

    On a CPU upstream's ask for a GPU first, and fail of that.
    """
    kernels = {name for name, value in namespace.items() if isinstance(value, Kernel)}
    for name, value in [*namespace.items()]:
        if (
            isinstance(value, FunctionType)
            and value.__globals__ is namespace
            and kernels.intersection(value.__code__.co_names)
        ):
            namespace[name] = _explaining(value)


def _explaining(function: FunctionType) -> Any:
    @functools.wraps(function)
    def explaining(*arguments: Any, **keywords: Any) -> Any:
        try:
            return function(*arguments, **keywords)
        except NoTriton:
            raise
        except (AssertionError, AttributeError, RuntimeError, TypeError) as error:
            if error.__traceback__ is None or error.__traceback__.tb_next is None:
                raise  # it was called with what it does not take
            raise NoTriton(function.__module__, function.__name__) from error

    return explaining


def _is_kernel(value: Any) -> bool:
    return inspect.isfunction(value) or isinstance(value, Kernel)


def __getattr__(name: str) -> Placeholder:
    if name.startswith("__"):
        raise AttributeError(name)
    return Placeholder(f"triton.{name}")
