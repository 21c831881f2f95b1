"""Names of a package that is imported only when one of them is used.

``import mamba_ssm`` imports the language model, and with it transformers, which takes longer than
all the rest and may be missing: whoever wants the blocks alone needs none of it.
"""

from __future__ import annotations

import copy
import copyreg
import sys
import types
from abc import ABCMeta
from importlib import import_module
from typing import Any, Callable, Iterator, NamedTuple

from jetson_mamba import advice

# What is looked up on a class to use it. Any other special name is the stand-in's own, so that
# annotations and whoever looks through a module import nothing.
SPECIAL = ("__dataclass_fields__", "__dataclass_params__")


class Name(NamedTuple):
    """A name that is looked up in a module when it is used.

    ``purpose`` ends a sentence: what mamba_ssm needs it for. ``there`` is the module that has it,
    where that is not the one that it is known by.
    """

    module: str
    name: str
    purpose: str
    there: str = ""

    def get(self) -> Any:
        """What has that name.

        Raises ImportError where it cannot be had, in one sentence with what to do; where the
        package is missing that is a ModuleNotFoundError.
        """
        package = self.module.partition(".")[0]
        try:
            return getattr(import_module(self.there or self.module), self.name)
        except ModuleNotFoundError as error:
            if error.name == package:
                raise ModuleNotFoundError(self._missing(package), name=package) from error
            absent = error.name == self.module
            message = self._absent(package) if absent else self._broken(package, error)
            raise ImportError(message, name=package) from error
        except Exception as error:
            # Of the package itself: an import in it that fails is no answer that it has no such.
            absent = isinstance(error, AttributeError) and self.module in sys.modules
            message = self._absent(package) if absent else self._broken(package, error)
            raise ImportError(message, name=package) from error

    def _missing(self, package: str) -> str:
        return f"{self._wanted(package)}, and there is none: {advice.pip()} install {package}"

    def _broken(self, package: str, error: Exception) -> str:
        return (
            f"{self._wanted(package)}, and {_version(package)} cannot be imported "
            f"({type(error).__name__}: {error}): mend that first"
        )

    def _absent(self, package: str) -> str:
        found = _version(package)
        message = f"{self._wanted(package)}, and {found} has no {self.module}.{self.name}"
        if package != "transformers" or _takes_this_torch():
            return f"{message}: {advice.pip()} install --upgrade {package}"
        import torch

        message += f", since it does not take torch {torch.__version__}: install a newer torch"
        newest = found.startswith("transformers 5")
        return f"{message}, or {advice.pip()} install {'transformers<5'!r}" if newest else message

    def _wanted(self, package: str) -> str:
        return f"mamba_ssm needs {package} {self.purpose}"


def function(name: Name) -> Callable[..., Any]:
    """A function that is another one, which is imported when it is called."""

    def call(*args: Any, **keywords: Any) -> Any:
        return name.get()(*args, **keywords)

    call.__module__ = name.module
    call.__name__ = call.__qualname__ = name.name
    return call


class Later(ABCMeta):
    """A class that stands for another one, which is imported at its first use.

    Its instances, subclasses, attributes and pickles are those of the other. Its metaclass is that
    of abstract classes because beside one of those the other could be a base.
    """

    _stands_for: Name

    def __new__(
        cls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], **keywords: Any
    ) -> Any:
        """The stand-in where it has no bases; with them, a subclass of what they stand for."""
        if not bases:
            return super().__new__(cls, name, bases, namespace)
        real = tuple(_real(base) if type(base) is Later else base for base in bases)
        return types.new_class(name, real, keywords, lambda body: body.update(namespace))

    def __call__(cls, *args: Any, **keywords: Any) -> Any:
        """An instance of what it stands for."""
        return _real(cls)(*args, **keywords)

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in SPECIAL:
            raise AttributeError(f"type object {cls.__name__!r} has no attribute {name!r}")
        return getattr(_real(cls), name)

    def __setattr__(cls, name: str, value: object) -> None:
        if name in ("__abstractmethods__", "_abc_impl"):  # the metaclass's own
            super().__setattr__(name, value)
        else:
            setattr(_real(cls), name, value)

    def __delattr__(cls, name: str) -> None:
        delattr(_real(cls), name)

    def __dir__(cls) -> Iterator[str]:
        return iter(dir(_real(cls)))

    def __str__(cls) -> str:
        """What is printed of the class that it stands for, where that can be had."""
        try:
            return str(_real(cls))
        except ImportError:
            return repr(cls)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _real(cls))

    def __subclasscheck__(cls, subclass: type) -> bool:
        return subclass is cls or issubclass(subclass, _real(cls))


def a_class(name: Name) -> Any:
    """A class that stands for the one of that name."""
    own = {"__module__": name.module, "__qualname__": name.name, "_stands_for": name}
    return Later(name.name, (), own)


def _real(stand_in: Any) -> Any:
    return stand_in._stands_for.get()


def _reduce(stand_in: Later) -> tuple[Any, ...]:
    # A copy of a class is that class: whoever reads the pickle gets the real one.
    return copy.copy, (_real(stand_in),)


copyreg.pickle(Later, _reduce)


def _version(package: str) -> str:
    return f"{package} {getattr(sys.modules.get(package), '__version__', '')}".rstrip()


def _takes_this_torch() -> bool:
    """Whether transformers has switched on what needs torch."""
    try:
        return bool(import_module("transformers.utils").is_torch_available())
    except Exception:  # older than the question
        return True
