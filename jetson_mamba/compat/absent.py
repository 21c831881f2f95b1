"""A module that stands in for a package of kernels which cannot be imported.

A module of mamba_ssm can be imported with it. Every name that is imported from it exists; a
function that one of them decorates becomes a kernel whose call raises an error, which says what is
missing. Only modified copies get to see it.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NoReturn

from jetson_mamba import advice, kernel_packages


class Absent:
    """Whatever a text takes of a package, under its dotted name; calls and attributes give more.

    ``kind`` is the language of :mod:`jetson_mamba.kernel_packages` that the package belongs to.
    """

    def __init__(self, kind: str, name: str) -> None:
        self.__name__ = self.__qualname__ = name
        self._kind = kind

    def _more(self, suffix: str) -> Absent:
        return Absent(self._kind, f"{self.__name__}{suffix}")

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._more(f".{name}")

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """What this, as a decorator, makes of a function; of anything else more of the kind."""
        if len(arguments) == 1 and not keywords and inspect.isfunction(arguments[0]):
            return Kernel(self._kind, arguments[0])
        return self._more("(...)")

    def __getitem__(self, _: Any) -> Absent:
        return self._more("[...]")

    # In annotations.
    __or__ = __ror__ = __getitem__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Absent) and other.__name__ == self.__name__

    def __hash__(self) -> int:
        return hash(self.__name__)

    def __repr__(self) -> str:
        return f"<{self.__name__}, which is not there>"


class Kernel:
    """A function that would be compiled: it can be looked at, and not be called."""

    def __init__(self, kind: str, function: Any) -> None:
        functools.update_wrapper(self, function)
        self._kind = kind
        self._name = f"{function.__module__}.{function.__qualname__}"

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        """Say what is missing."""
        raise NoKernel(self._name, self._kind)


class NoKernel(RuntimeError):
    """A kernel is called whose language is not there."""

    def __init__(self, kernel: str, kind: str) -> None:
        super().__init__(kernel, kind)
        self.kernel, self.kind = kernel, kind

    def __str__(self) -> str:
        install = f"{advice.pip()} install {kernel_packages.KINDS[self.kind].install}"
        return (
            f"{self.kernel} is a kernel in {self.kind}, which cannot be imported here, and "
            f"jetson_mamba has nothing that takes its place. What to do: {install}, on a GPU that "
            "it has kernels for, or call the function of mamba_ssm that launches it."
        )
