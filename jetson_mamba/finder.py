"""The finder and the loader that hand over modified copies while Python imports the targets.

This module is imported at every interpreter start, so it imports nothing but ``sys``; what an
import of a target needs is imported then.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

TARGETS = (
    "mamba_ssm.ops.selective_scan_interface",
    "mamba_ssm.ops.triton.ssd_combined",
    "mamba_ssm.utils.generation",
    "mamba_ssm.ops.triton.layer_norm",
    "mamba_ssm.ops.triton.layernorm",
    "mamba_ssm.ops.triton.layernorm_gated",
    "mamba_ssm.ops.triton.selective_state_update",
    "mamba_ssm.modules.mamba_simple",
    "mamba_ssm.modules.mamba2",
    "mamba_ssm.modules.mamba2_simple",
)
# What an unmodified target imports: seeing it asked for shows that a target went past the finder.
EXTENSIONS = ("selective_scan_cuda", "causal_conv1d", "causal_conv1d_cuda")
# How the names of the same modules end in a package that is a copy of mamba-ssm: the first two as
# nothing else does, the others, which are common words, together with their folder.
TAILS = {".".join(name.split(".")[-1 if name in TARGETS[:2] else -2 :]): name for name in TARGETS}
# The last part of every name that is looked at any further.
WATCHED = frozenset(name.rpartition(".")[2] for name in TARGETS + EXTENSIONS)
# Without any of these words a text of another package is none of mamba-ssm.
WORDS = (b"selective_scan_cuda", b"causal_conv1d", b"triton", b"mamba")


class Finder:
    """Finds the targets where the finders after it do, and puts its loader around theirs.

    ``outcomes`` says what became of each target when it was last imported: the
    :class:`~jetson_mamba.copies.ModifiedCopy` that runs, or the reason why it is upstream's own.
    A process has one finder, which outlives a reload of the package; a pickle of it is that of
    the process that reads it.
    """

    def __init__(self, mode: str, stand_in: bool) -> None:
        self.mode = mode
        self.strict = mode == "strict"
        self.stand_in = stand_in
        self.activated_by = "import"
        self.outcomes: Dict[str, object] = {}

    def __reduce__(self) -> "Tuple[Any, ...]":
        return of_this_process, ()

    def find_spec(
        self,
        fullname: str,
        path: "Optional[Sequence[str]]" = None,
        target: "Optional[ModuleType]" = None,
    ) -> "Optional[ModuleSpec]":
        """The spec that the finders after this one have, with a :class:`Loader` in it."""
        parent, _, last = fullname.rpartition(".")
        if last not in WATCHED:
            return None
        if fullname in EXTENSIONS:
            self.warn_of_bypassed_targets()
            return self._stand_in_for(fullname, path, target)
        known = fullname
        if fullname not in TARGETS:
            known = TAILS.get(last) or TAILS.get(f"{parent.rpartition('.')[2]}.{last}") or ""
            # Another word, no module of a package, or an override.
            if not known or path is None or fullname.startswith("jetson_mamba."):
                return None
        finders = self._following()
        spec = _found(finders, fullname, path, target)
        if spec is None:
            return self._moved(finders, fullname, path) if fullname == known else None
        if spec.loader is None or (fullname != known and not _reads_plain_files(spec.loader)):
            return spec
        spec.loader = Loader(self, spec, known)  # type: ignore[assignment]
        return spec

    def find_distributions(self, context: "Any" = None) -> "Iterator[Any]":
        """The metadata of causal-conv1d, where it is asked for and the stand-in is what there is.

        Whoever asks for all distributions, or for those of a folder, as pip does, gets what lies
        on the disk.
        """
        name = getattr(context, "name", None)
        if not self.stand_in or not isinstance(name, str) or "path" in vars(context):
            return iter(())
        if name.lower().replace("_", "-") != "causal-conv1d":
            return iter(())
        try:
            from jetson_mamba.stand_in import metadata
        except ImportError:  # half uninstalled
            return iter(())
        return metadata.distributions(self, context)

    def _following(self) -> "Sequence[Any]":
        """The finders after this one: none where it was taken away, or another tool wraps it."""
        try:
            return sys.meta_path[sys.meta_path.index(self) + 1 :]
        except ValueError:
            return ()

    def _stand_in_for(
        self, name: str, path: "Optional[Sequence[str]]", target: "Optional[ModuleType]"
    ) -> "Optional[ModuleSpec]":
        finders = self._following() if self.stand_in else ()
        if not finders:
            return None
        spec = _found(finders, name, path, target)
        try:
            from jetson_mamba import stand_in
        except ImportError:  # half uninstalled
            return spec
        return stand_in.spec(name, spec)

    def _moved(
        self, finders: "Sequence[Any]", name: str, path: "Optional[Sequence[str]]"
    ) -> "Optional[ModuleSpec]":
        """A spec for a target that this release has under another name."""
        if not self.stand_in or not name.endswith(("layernorm", "layer_norm")):
            return None
        try:
            from jetson_mamba.stand_in import moved
        except ImportError:  # half uninstalled
            return None
        there = _found(finders, moved.OTHER_NAME[name], path, None) is not None
        return moved.spec(self, name) if there else None

    def warn_of_bypassed_targets(self) -> None:
        """Warn once of each target that is imported and did not come through this finder."""
        for name in TARGETS:
            loader = loader_of(sys.modules.get(name))
            if loader is None:
                continue
            if is_a(loader, "Loader"):
                if loader.outcome is not None:
                    self.outcomes[name] = loader.outcome
                continue
            if self in sys.meta_path:
                reason = f"another import hook took it first ({type(loader).__name__})"
                advice = "install that hook before jetson_mamba, or import jetson_mamba after it"
            else:
                reason = "it was imported before jetson_mamba was activated"
                advice = "import jetson_mamba first"
            if self.outcomes.get(name) == reason:
                continue
            if self in sys.meta_path:
                # Whatever is imported from here on comes through this finder again.
                sys.meta_path.remove(self)
                sys.meta_path.insert(0, self)
            self.leave(name, reason, advice)

    def leave(self, name: str, reason: str, advice: str) -> str:
        """Note that a target stays upstream's own, and say so once; the sentence.

        In strict mode that is an ImportError.
        """
        message = f"{name} stays as it is installed: {reason}. What to do: {advice}."
        if self.strict:
            # Not noted as said: whoever catches this ImportError meets it again.
            raise ImportError(message, name=name)
        if self.outcomes.get(name) != reason:
            self.outcomes[name] = reason
            import warnings

            # leave, its caller, what the import system called; then whoever imports.
            warnings.warn(message, RuntimeWarning, stacklevel=4)
        return message


class Loader:
    """Runs the modified copy of a target as the module, or upstream's own where there is none.

    Everything else that is asked of a loader is answered by the one that reads the copy. The
    module may be one of another package; then ``target`` is what it would be in mamba_ssm, and
    where there is no copy it is loaded as if this class had not been there.
    """

    def __init__(self, finder: Finder, spec: "ModuleSpec", target: str) -> None:
        self.finder = finder
        self.spec = spec
        self.target = target
        self.original: Any = spec.loader
        self.outcome: object = None
        # Why upstream's own module runs that was expected to be modified, in a sentence.
        self.left: Optional[str] = None
        self._chosen: Any = None

    def create_module(self, spec: "ModuleSpec") -> "Optional[ModuleType]":
        """The module that the original loader would make, mostly None for the usual one."""
        # zipimporter has it from Python 3.10 on, older kinds of loaders never.
        create = getattr(self.original, "create_module", None)
        return create(spec) if create is not None else None

    def exec_module(self, module: "ModuleType") -> None:
        """Run the copy in ``module``, whose file it becomes."""
        chosen = self._choose()
        if chosen is not self.original:
            module.__file__ = self.spec.origin
            vars(module)["__cached__"] = self.spec.cached
            chosen.exec_module(module)
            return
        if self.target != self.spec.name and module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self.original
        execute = getattr(chosen, "exec_module", None) or self._load_module
        if self.left is not None:
            try:
                from jetson_mamba import unserved
            except ImportError:  # half uninstalled
                pass
            else:
                unserved.execute(execute, module, self.left)
                return
        execute(module)

    def _load_module(self, module: "ModuleType") -> None:
        """Let a loader of the oldest kind run the module, which it finds in ``sys.modules``."""
        self.original.load_module(module.__name__)

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__") or "original" not in vars(self):
            raise AttributeError(name)
        getattr(self.original, name)  # what it lacks is not looked for in a copy
        return getattr(self._choose(), name)

    def _choose(self) -> "Any":
        if self._chosen is None:
            chosen = self.original
            try:
                modified = self._copy()
            except Exception as error:
                # Whatever it is, the program runs without the copy as it would without the hook.
                if self.target == self.spec.name:
                    self.outcome, advice = _reason_and_advice(error, self.original)
                    self._chosen = chosen
                    self.left = self.finder.leave(self.spec.name, str(self.outcome), advice)
                    return chosen
                modified = None
            if modified is None:
                self.outcome = "it needs no change"
            else:
                from jetson_mamba import copies

                self.outcome = modified
                chosen = copies.loader_for(modified, self.original)
                self.spec.origin = modified.path
                self.spec.cached = None
            self._chosen = chosen
            if self.target == self.spec.name or modified is not None:
                self.finder.outcomes[self.spec.name] = self.outcome
        return self._chosen

    def _copy(self) -> "Any":
        if self.target != self.spec.name:
            source = self.original.get_data(self.original.path)
            if not any(word in source for word in WORDS):
                return None
        from jetson_mamba import copies

        return copies.find(self.target, self.original)


def present() -> "Optional[Finder]":
    """The finder that is in ``sys.meta_path``, whichever import of this module put it there."""
    for finder in sys.meta_path:
        if is_a(finder, "Finder"):
            return finder  # type: ignore[return-value]
    return None


def of_this_process() -> Finder:
    """The finder of the package that is imported here."""
    import jetson_mamba

    return jetson_mamba._finder


def is_a(thing: object, name: str) -> bool:
    """Whether it is of the class ``name`` of this module, also as an earlier import made it."""
    return any(
        kind.__name__ == name and getattr(kind, "__module__", None) == __name__
        for kind in type(thing).__mro__
    )


def loader_of(module: object) -> "Any":
    """What loaded a module; None for one that no file is behind, as a test's stub."""
    spec = getattr(module, "__spec__", None)
    loader = getattr(spec, "loader", None)
    if is_a(loader, "Loader"):
        return loader
    return loader if isinstance(getattr(spec, "origin", None), str) else None


def _found(
    finders: "Sequence[Any]",
    name: str,
    path: "Optional[Sequence[str]]",
    target: "Optional[ModuleType]",
) -> "Optional[ModuleSpec]":
    """The first spec that one of the finders has, as the import system would ask them."""
    for finder in finders:
        find_spec = getattr(finder, "find_spec", None)
        spec: Optional[ModuleSpec] = None
        if find_spec is not None:
            spec = find_spec(name, path, target)
        elif sys.version_info < (3, 12) and hasattr(finder, "find_module"):
            from importlib.util import spec_from_loader

            loader = finder.find_module(name, path)
            spec = spec_from_loader(name, loader) if loader is not None else None
        if spec is not None:
            return spec
    return None


def _reads_plain_files(loader: object) -> bool:
    from importlib.machinery import SourceFileLoader

    return isinstance(loader, SourceFileLoader)


def _reason_and_advice(error: Exception, loader: "Any") -> "Tuple[str, str]":
    """Why there is no copy, and what to do about it."""
    whole = not isinstance(error, (ImportError, OSError))
    reason = str(error)
    if not whole:
        reason = f"jetson_mamba is not installed whole ({error})"
    elif type(error).__name__ != "Refused":
        reason = f"jetson_mamba failed on it ({type(error).__name__}: {error})"
    try:
        from jetson_mamba import advice

        path = getattr(loader, "path", None)
        return reason, advice.for_a_text(path) if whole else advice.repair()
    except Exception:  # that half is gone as well, or the metadata cannot be read
        return reason, "install jetson_mamba again, or set JETSON_MAMBA=off to silence this"
