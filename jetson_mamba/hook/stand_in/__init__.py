"""Imports a stand-in where ``causal_conv1d`` or a compiled extension cannot be imported.

mamba-ssm and transformers look for the package before they take their fast paths, mamba-ssm to
1.1.4 cannot be imported without it, and other code imports the extensions by name. Where the
finders have none, or the one that is installed raises an ImportError, what lies in this folder
is imported under its name. One that works always wins, and ``JETSON_MAMBA_STAND_IN=off`` leaves
things as they are.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from threading import get_ident
from types import ModuleType
from typing import Any

PACKAGE = "causal_conv1d"
FOLDER = os.path.dirname(os.path.abspath(__file__))
# The threads in which an installed package runs, which is to fail as it does without its extension.
_packages_running: set[int] = set()


def spec(name: str, installed: ModuleSpec | None) -> ModuleSpec | None:
    """The spec of what is installed with a loader that can fall back, or of the stand-in."""
    if name != PACKAGE and get_ident() in _packages_running:
        return installed
    found = installed or _own_spec(name)
    if found is not None and found.loader is not None:
        loader: Any = StandInLoader(name, found, installed is not None)
        found.loader = loader
    return found


def is_one(module: object) -> bool:
    """Whether a module is one of this folder, whatever its name."""
    return "__jetson_mamba_reason__" in getattr(module, "__dict__", {})


def stands_in(found: ModuleSpec | None) -> bool:
    """Whether a spec is that of a stand-in where nothing is installed."""
    loader = found.loader if found is not None else None
    return isinstance(loader, StandInLoader) and not loader.installed


def _own_spec(name: str) -> ModuleSpec | None:
    return PathFinder.find_spec(name, [FOLDER])


class StandInLoader:
    """Runs what is installed; if that raises an ImportError, the stand-in in its place.

    The reason stands in the module as ``__jetson_mamba_reason__``, None where nothing is
    installed. Where the stand-in cannot be imported either, as without torch, the error is that
    which there would be without it.
    """

    def __init__(self, name: str, found: ModuleSpec, installed: bool) -> None:
        self._name = name
        self._original: Any = found.loader
        self.installed = installed
        self._failure: ImportError | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that the original loader would make; a compiled one is loaded by that."""
        create = getattr(self._original, "create_module", None)
        try:
            module: ModuleType | None = create(spec) if create is not None else None
        except ImportError as error:
            if not self.installed:
                raise
            self._failure = error
            return None
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run one of the two in ``module``."""
        before = dict(vars(module))
        if self.installed:
            if self._failure is None:
                self._failure = self._run_installed(module)
            if self._failure is None:
                loader: Any = self
                if module.__spec__ is not None and module.__spec__.loader is loader:
                    module.__spec__.loader = module.__loader__ = self._original
                return
            vars(module).clear()
            vars(module).update(before)
        own = _own_spec(self._name)
        failure = self._failure or ModuleNotFoundError(
            f"No module named {self._name!r}", name=self._name
        )
        if own is None or own.loader is None:
            raise failure
        if own.submodule_search_locations is not None:
            module.__path__ = list(own.submodule_search_locations)
        module.__file__ = own.origin
        reason = f"{type(failure).__name__}: {failure}" if self._failure else None
        vars(module)["__jetson_mamba_reason__"] = reason
        try:
            own.loader.exec_module(module)
        except Exception as error:  # whatever a torch that is half there raises
            raise failure from error

    def _run_installed(self, module: ModuleType) -> ImportError | None:
        """Run what is installed; its ImportError, after which it is as if it had not run."""
        extension = None
        if self._name == PACKAGE:
            _packages_running.add(get_ident())
            if is_one(sys.modules.get("causal_conv1d_cuda")):
                extension = sys.modules.pop("causal_conv1d_cuda")
        try:
            execute = getattr(self._original, "exec_module", None)
            if execute is None:
                self._original.load_module(module.__name__)
            else:
                execute(module)
        except ImportError as error:
            for name in [each for each in sys.modules if each.startswith(f"{self._name}.")]:
                del sys.modules[name]
            return error
        finally:
            _packages_running.discard(get_ident())
            if extension is not None:
                sys.modules.setdefault("causal_conv1d_cuda", extension)
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._original, name)
