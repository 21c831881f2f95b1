"""Takes the place of the package ``causal_conv1d`` where none can be imported.

mamba-ssm and transformers look for that package before they take their fast paths, and mamba-ssm
to 1.1.4 cannot be imported without it. Where the finders have none, or the one that is installed
raises an ImportError, the package in this folder is imported under its name. One that works
always wins, and ``JETSON_MAMBA_STAND_IN=off`` leaves things as they are.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

NAME = "causal_conv1d"
FOLDER = os.path.join(os.path.dirname(__file__), NAME)


def spec(installed: ModuleSpec | None) -> ModuleSpec | None:
    """The spec of the installed package with a loader that can fall back, or of the stand-in."""
    if installed is None:
        return importlib.util.spec_from_file_location(
            NAME, os.path.join(FOLDER, "__init__.py"), submodule_search_locations=[FOLDER]
        )
    if installed.loader is not None:
        installed.loader = FallBackLoader(installed)  # type: ignore[assignment]
    return installed


class FallBackLoader:
    """Runs the installed package; if it raises an ImportError, the stand-in in its place.

    The reason stands in the module as ``__jetson_mamba_reason__``.
    """

    def __init__(self, installed: ModuleSpec) -> None:
        self._original: Any = installed.loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that the installed package's loader would make."""
        module: ModuleType | None = self._original.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run one of the two in ``module``."""
        before = dict(vars(module))
        try:
            self._original.exec_module(module)
        except ImportError as error:
            for name in [each for each in sys.modules if each.startswith(f"{NAME}.")]:
                del sys.modules[name]
            vars(module).clear()
            vars(module).update(before)
            stand_in = spec(None)
            assert stand_in is not None and stand_in.loader is not None
            module.__path__ = [FOLDER]
            module.__file__ = stand_in.origin
            vars(module)["__jetson_mamba_reason__"] = f"{type(error).__name__}: {error}"
            stand_in.loader.exec_module(module)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._original, name)
