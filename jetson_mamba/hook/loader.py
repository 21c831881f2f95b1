"""The loader that runs a modified copy in the place of a target.

Only the finder imports this module, the first time while an import is under way. Were it imported
elsewhere, two threads could wait for each other: each would hold the lock of a module that the
other needs.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType
from typing import Any, Sequence

from jetson_mamba.finder import TARGETS, Finder, is_a, loader_of
from jetson_mamba.hook import joined

# Without any of these words a text of another package is none of mamba-ssm.
WORDS = (b"selective_scan_cuda", b"causal_conv1d", b"triton", b"mamba")


def spec_of_target(
    finder: Finder,
    name: str,
    target: str,
    path: Sequence[str] | None,
    module: ModuleType | None,
) -> ModuleSpec | None:
    """The spec that the finders after ``finder`` have, with a :class:`Loader` in it.

    ``target`` is what the module ``name`` would be in mamba_ssm; in another package it is a
    target only if a plain file is behind it.
    """
    finders = _following(finder)
    spec = _found(finders, name, path, module)
    if spec is None:
        return _moved(finder, finders, name, path) if name == target else None
    if spec.loader is not None and (name == target or isinstance(spec.loader, SourceFileLoader)):
        loader: Any = Loader(finder, spec, target)
        spec.loader = loader
    return spec


def spec_beside(
    finder: Finder, name: str, path: Sequence[str] | None, module: ModuleType | None
) -> ModuleSpec | None:
    """The spec of another module of mamba_ssm, with a :class:`Loader` in it if it has kernels."""
    spec = _found(_following(finder), name, path, module)
    if spec is not None and isinstance(spec.loader, SourceFileLoader):
        try:
            source = spec.loader.get_data(spec.loader.path)
            from jetson_mamba import kernel_packages
        except (ImportError, OSError):  # half uninstalled, or a text that its loader fails on
            return spec
        if kernel_packages.concerns(source):
            loader: Any = Loader(finder, spec, name)
            spec.loader = loader
    return spec


def spec_of_extension(
    finder: Finder, name: str, path: Sequence[str] | None, module: ModuleType | None
) -> ModuleSpec | None:
    """The spec of what is installed, which can fall back on a stand-in, or that of the stand-in."""
    finders = _following(finder) if finder.stand_in else ()
    if not finders:
        return None
    spec = _found(finders, name, path, module)
    try:
        from jetson_mamba.hook import stand_in
    except ImportError:  # half uninstalled
        return spec
    return stand_in.spec(name, spec)


def spec_joined(
    finder: Finder, name: str, path: Sequence[str] | None, module: ModuleType | None
) -> ModuleSpec | None:
    """The spec of a module of transformers, with a :class:`Joining` in it."""
    spec = _found(_following(finder), name, path, module)
    if spec is not None and isinstance(spec.loader, SourceFileLoader):
        loader: Any = Joining(spec.loader)
        spec.loader = loader
    return spec


def warn_of_bypassed_targets(finder: Finder) -> None:
    """Warn once of each target that is imported and did not come through the finder."""
    for name in TARGETS:
        loader = loader_of(sys.modules.get(name))
        if loader is None:
            continue
        if is_a(loader, "Loader"):
            if loader.outcome is not None:
                finder.outcomes[name] = loader.outcome
            continue
        if finder in sys.meta_path:
            reason = f"another import hook took it first ({type(loader).__name__})"
            advice = "install that hook before jetson_mamba, or import jetson_mamba after it"
        else:
            reason = "it was imported before jetson_mamba was activated"
            advice = "import jetson_mamba first"
        if finder.outcomes.get(name) == reason:
            continue
        if finder in sys.meta_path:
            # Whatever is imported from here on comes through it again.
            sys.meta_path.remove(finder)
            sys.meta_path.insert(0, finder)
        leave(finder, name, reason, advice)


def leave(finder: Finder, name: str, reason: str, advice: str) -> str:
    """Note that a target stays upstream's own, and say so once; the sentence.

    In strict mode that is an ImportError.
    """
    message = f"{name} stays as it is installed: {reason}. What to do: {advice}."
    if finder.strict:
        # Not noted as said: whoever catches this ImportError meets it again.
        raise ImportError(message, name=name)
    if finder.outcomes.get(name) != reason:
        finder.outcomes[name] = reason
        import warnings

        # leave, its caller, what the import system called; then whoever imports.
        warnings.warn(message, RuntimeWarning, stacklevel=4)
    return message


class Loader:
    """Runs the modified copy of a target as the module, or upstream's own where there is none.

    Everything else that is asked of a loader is answered by the one that reads the copy. The
    module may be one of another package; then ``target`` is what it would be in mamba_ssm, and
    where there is no copy it is loaded as if this class had not been there. So is a module of
    mamba_ssm that is no target, which has a copy where no Triton can serve it.
    """

    def __init__(self, finder: Finder, spec: ModuleSpec, target: str) -> None:
        self.finder = finder
        self.spec = spec
        self.target = target
        self.is_target = target == spec.name and target in TARGETS
        self.original: Any = spec.loader
        self.outcome: object = None
        # Why upstream's own module runs that was expected to be modified, in a sentence.
        self.left: str | None = None
        self._chosen: Any = None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that the original loader would make, mostly None for the usual one."""
        # zipimporter has it from Python 3.10 on, older kinds of loaders never.
        create = getattr(self.original, "create_module", None)
        return create(spec) if create is not None else None

    def exec_module(self, module: ModuleType) -> None:
        """Run the copy in ``module``, whose file it becomes.

        A package that it lacks is an error that says what to install.
        """
        try:
            self._execute(module)
        except ModuleNotFoundError as error:
            try:
                from jetson_mamba.hook import missing
            except ImportError:  # half uninstalled
                pass
            else:
                missing.explain(error)
            raise

    def _execute(self, module: ModuleType) -> None:
        chosen = self._choose()
        if chosen is not self.original:
            module.__file__ = self.spec.origin
            if "__cached__" in vars(module):  # until Python 3.15
                vars(module)["__cached__"] = self.spec.cached
            self._explaining(chosen.exec_module, module, self._left_in_the_copy())
            self._keep_names(module)
            return
        if not self.is_target and self.left is None and module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.original
        execute = getattr(chosen, "exec_module", None) or self._load_module
        self._explaining(execute, module, self.left)

    def _keep_names(self, module: ModuleType) -> None:
        """Let the module have the names that its own text has of extensions."""
        source = getattr(self.original, "path", None)
        try:
            from jetson_mamba.hook import names
        except ImportError:  # half uninstalled
            return
        if isinstance(source, str):
            names.keep(module, source)

    def _explaining(self, execute: Any, module: ModuleType, left: str | None) -> None:
        """Run a module; ``left`` is why it may lack an extension, None where it does not."""
        if left is not None:
            try:
                from jetson_mamba.hook import unserved
            except ImportError:  # half uninstalled
                pass
            else:
                unserved.execute(execute, module, left)
                return
        execute(module)

    def _left_in_the_copy(self) -> str | None:
        """The imports of extensions that the copy has left as they are, in a sentence."""
        left = [
            f"{what} ({reason})"
            for what, reason in getattr(self.outcome, "left_out", ())
            if what.startswith("the import of ") or " in a string on line " in what
        ]
        if not left:
            return None
        return (
            f"the modified copy of {self.spec.name} leaves as it is: {'; '.join(left)}. What to "
            "do: write the import with the names that are used, or do without "
            "JETSON_MAMBA_STAND_IN=off."
        )

    def _load_module(self, module: ModuleType) -> None:
        """Let a loader of the oldest kind run the module, which it finds in ``sys.modules``."""
        self.original.load_module(module.__name__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "original" not in vars(self):
            raise AttributeError(name)
        getattr(self.original, name)  # what it lacks is not looked for in a copy
        return getattr(self._choose(), name)

    def _choose(self) -> Any:
        if self._chosen is None:
            chosen = self.original
            try:
                modified = self._copy()
            except Exception as error:
                # Whatever it is, the program runs without the copy as it would without the hook.
                if self.target == self.spec.name:
                    self.outcome, advice = _reason_and_advice(error, self.original)
                    self._chosen = chosen
                    self.left = leave(self.finder, self.spec.name, str(self.outcome), advice)
                    return chosen
                modified = None
            if modified is None:
                self.outcome = "it needs no change"
            else:
                from jetson_mamba.hook import copies

                self.outcome = modified
                chosen = copies.loader_for(modified, self.original)
                self.spec.origin = modified.path
                self.spec.cached = None
            self._chosen = chosen
            if self.is_target or modified is not None:
                self.finder.outcomes[self.spec.name] = self.outcome
        return self._chosen

    def _copy(self) -> Any:
        if self.target != self.spec.name:
            source = self.original.get_data(self.original.path)
            if not any(word in source for word in WORDS):
                return None
        from jetson_mamba.hook import copies

        lacks = self._lacking()
        if not lacks and self.target not in TARGETS:
            return None
        modified = copies.find(self.target, self.original, lacks)
        if lacks:
            from jetson_mamba import kernel_packages

            kernel_packages.note(self.spec.name, lacks)
        return modified

    def _lacking(self) -> dict[str, str]:
        """What the module cannot have of what its kernels are written in, and why not.

        It imports placeholders for that.
        """
        ours = self.spec.name.startswith("mamba_ssm.")
        if not ours or not isinstance(self.original, SourceFileLoader):
            return {}
        from jetson_mamba import kernel_packages

        source = self.original.get_data(self.original.path)
        return kernel_packages.lacking(source, importing=True)


class Joining:
    """Loads a module as its own loader does, and joins what is in it to the ops.

    The module keeps its own loader.
    """

    def __init__(self, original: SourceFileLoader) -> None:
        self.original = original

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module that the original loader would make."""
        return self.original.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module's own text."""
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.original
        self.original.exec_module(module)
        try:
            joined.join(module)
        except Exception:
            # Whatever it is, the module is what it would be without the hook.
            return

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "original" not in vars(self):
            raise AttributeError(name)
        return getattr(self.original, name)


def _following(finder: Finder) -> Sequence[Any]:
    """The finders after ours: none where it was taken away, or another tool wraps it."""
    try:
        return sys.meta_path[sys.meta_path.index(finder) + 1 :]
    except ValueError:
        return ()


def _found(
    finders: Sequence[Any],
    name: str,
    path: Sequence[str] | None,
    target: ModuleType | None,
) -> ModuleSpec | None:
    """The first spec that one of the finders has, as the import system would ask them."""
    for finder in finders:
        find_spec = getattr(finder, "find_spec", None)
        spec: ModuleSpec | None = None
        if find_spec is not None:
            spec = find_spec(name, path, target)
        elif sys.version_info < (3, 12) and hasattr(finder, "find_module"):
            from importlib.util import spec_from_loader

            loader = finder.find_module(name, path)
            spec = spec_from_loader(name, loader) if loader is not None else None
        if spec is not None:
            return spec
    return None


def _moved(
    finder: Finder, finders: Sequence[Any], name: str, path: Sequence[str] | None
) -> ModuleSpec | None:
    """A spec for a target that this release has under another name."""
    if not finder.stand_in or not name.endswith(("layernorm", "layer_norm")):
        return None
    try:
        from jetson_mamba.hook.stand_in import moved
    except ImportError:  # half uninstalled
        return None
    there = _found(finders, moved.OTHER_NAME[name], path, None) is not None
    return moved.spec(finder, name) if there else None


def _reason_and_advice(error: Exception, loader: Any) -> tuple[str, str]:
    """Why there is no copy, and what to do about it."""
    whole = not isinstance(error, (ImportError, OSError))
    reason = str(error)
    if not whole:
        reason = f"jetson_mamba is not installed whole ({error})"
    elif type(error).__name__ != "Refused":
        reason = f"jetson_mamba failed on it ({type(error).__name__}: {error})"
    try:
        from jetson_mamba import advice
        from jetson_mamba.releases import instead

        path = getattr(loader, "path", None)
        return reason, instead.for_a_text(path) if whole else advice.repair()
    except Exception:  # that half is gone as well, or the metadata cannot be read
        return reason, "install jetson_mamba again, or set JETSON_MAMBA=off to silence this"
