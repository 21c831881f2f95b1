"""Names of a package that is imported when one of them is used, and not before.

``import mamba_ssm`` imports the language model, and with it transformers, which takes longer than
all the rest and may be missing: whoever wants the blocks alone needs none of it.
"""

from __future__ import annotations

import copy
import sys
from importlib import import_module
from typing import Any, NoReturn

from jetson_mamba import advice

# What a class has that others look up on it; any other special name is the proxy's own, so that
# ``Optional[name]`` and whoever looks through a module need no import.
OF_A_CLASS = ("__bases__", "__dataclass_fields__", "__mro__")


class Later:
    """Stands for ``module.name``, a class or a function, and becomes it at its first use.

    Calls, attributes, ``isinstance``, ``issubclass``, subclasses and pickles are those of what it
    stands for. ``purpose`` ends a sentence: what mamba_ssm needs it for. ``there`` is the module
    that has it, where that is not the one that it is known by.

    Each use raises ImportError, in one sentence with what to do, where it cannot be had.
    """

    def __init__(self, module: str, name: str, purpose: str, there: str | None = None) -> None:
        vars(self).update(
            __module__=module,
            __name__=name,
            __qualname__=name,
            _purpose=purpose,
            _there=there or module,
        )

    def _it(self) -> Any:
        own = vars(self)
        if "_found" not in own:
            try:
                own["_found"] = getattr(import_module(own["_there"]), own["__name__"])
            except Exception as error:
                self._refuse(error)
        return own["_found"]

    def _refuse(self, error: Exception) -> NoReturn:
        own = vars(self)
        package = own["__module__"].partition(".")[0]
        wanted = f"mamba_ssm needs {package} {own['_purpose']}"
        if isinstance(error, ModuleNotFoundError) and error.name == package:
            raise ModuleNotFoundError(
                f"{wanted}, and it is not installed: {advice.pip()} install {package}",
                name=package,
            ) from error
        found = f"{package} {getattr(sys.modules.get(package), '__version__', '')}".rstrip()
        unknown = isinstance(error, ModuleNotFoundError) and error.name == own["__module__"]
        if not unknown and not isinstance(error, AttributeError):
            kind = type(error).__name__
            raise ImportError(
                f"{wanted}, and {found} cannot be imported ({kind}: {error}): mend that first",
                name=package,
            ) from error
        reason, todo = "", f"{advice.pip()} install --upgrade {package}"
        if package == "transformers" and not _takes_this_torch():
            import torch

            reason = f" beside torch {torch.__version__}, which is too old for it"
            todo = f"{advice.pip()} install 'transformers<{_major(found)}', or a newer torch"
        raise ImportError(
            f"{wanted}, and {found} has no {own['__module__']}.{own['__name__']}{reason}: {todo}",
            name=package,
        ) from error

    def __call__(self, *args: Any, **keywords: Any) -> Any:
        """What the class or function makes of the arguments."""
        return self._it()(*args, **keywords)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__") and name not in OF_A_CLASS:
            raise AttributeError(f"{self!r} has no attribute {name!r}")
        return getattr(self._it(), name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._it(), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._it(), name)

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self._it(),)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._it())

    def __subclasscheck__(self, kind: type) -> bool:
        return issubclass(kind, self._it())

    def __or__(self, other: Any) -> Any:
        return self._it() | other

    def __ror__(self, other: Any) -> Any:
        return other | self._it()

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of a class or a function is that object: whoever reads it gets the real one.
        return copy.copy, (self._it(),)

    def __repr__(self) -> str:
        own = vars(self)
        return f"<{own['__module__']}.{own['__name__']}, imported at its first use>"


def _takes_this_torch() -> bool:
    """Whether transformers has switched on what needs torch."""
    try:
        return bool(import_module("transformers.utils").is_torch_available())
    except Exception:  # older than the question
        return True


def _major(found: str) -> str:
    """The first number of a version, at the end of ``found``."""
    return found.rpartition(" ")[2].partition(".")[0]
