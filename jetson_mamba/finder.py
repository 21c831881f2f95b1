"""The finder and the loader that hand over modified copies while Python imports the targets.

This module is imported at every interpreter start, so it imports nothing but ``sys``; what an
import of a target needs is imported then.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any, Dict, Optional, Sequence, Tuple

TARGETS = (
    "mamba_ssm.ops.selective_scan_interface",
    "mamba_ssm.ops.triton.ssd_combined",
    "mamba_ssm.utils.generation",
    "mamba_ssm.ops.triton.layer_norm",
    "mamba_ssm.ops.triton.layernorm",
    "mamba_ssm.ops.triton.layernorm_gated",
    "mamba_ssm.ops.triton.k_activations",
    "mamba_ssm.ops.triton.selective_state_update",
    "mamba_ssm.modules.mamba_simple",
    "mamba_ssm.modules.mamba2",
    "mamba_ssm.modules.mamba2_simple",
)
# What an unmodified target imports: seeing it asked for shows that a target went past the finder.
EXTENSIONS = ("selective_scan_cuda", "causal_conv1d", "causal_conv1d_cuda")
WATCHED = frozenset(TARGETS + EXTENSIONS)


class Finder:
    """Finds the targets where the finders after it do, and puts its loader around theirs.

    ``outcomes`` says what became of each target that was imported: the
    :class:`~jetson_mamba.copies.ModifiedCopy` that runs, or the reason why it is upstream's own.
    """

    def __init__(self, strict: bool, stand_in: bool) -> None:
        self.strict = strict
        self.stand_in = stand_in
        self.outcomes: Dict[str, object] = {}

    def find_spec(
        self,
        fullname: str,
        path: "Optional[Sequence[str]]" = None,
        target: "Optional[ModuleType]" = None,
    ) -> "Optional[ModuleSpec]":
        """The spec that the finders after this one have, with a :class:`Loader` in it."""
        if fullname not in WATCHED:
            return None
        if fullname in EXTENSIONS:
            self.warn_of_bypassed_targets()
            if fullname != "causal_conv1d" or not self.stand_in:
                return None
        try:
            own = sys.meta_path.index(self)
        except ValueError:  # taken away meanwhile, or inside another tool's wrapper
            return None
        spec: Optional[ModuleSpec] = None
        for finder in sys.meta_path[own + 1 :]:
            find_spec = getattr(finder, "find_spec", None)
            spec = find_spec(fullname, path, target) if find_spec else None
            if spec is not None:
                break
        if fullname == "causal_conv1d":
            try:
                from jetson_mamba import stand_in
            except ImportError:  # half uninstalled
                return spec
            return stand_in.spec(spec)
        if spec is not None and spec.loader is not None:
            spec.loader = Loader(self, spec)  # type: ignore[assignment]
        return spec

    def warn_of_bypassed_targets(self) -> None:
        """Warn once of each target that is imported and did not come through this finder."""
        for name in TARGETS:
            module = sys.modules.get(name)
            if module is None or name in self.outcomes:
                continue
            loader = getattr(module, "__loader__", None)
            if isinstance(loader, Loader):
                self.outcomes[name] = loader.outcome
                continue
            if self in sys.meta_path:
                reason = f"another import hook took it first ({type(loader).__name__})"
                advice = "install that hook before jetson_mamba, or import jetson_mamba after it"
                # Whatever is imported from here on comes through this finder again.
                sys.meta_path.remove(self)
                sys.meta_path.insert(0, self)
            else:
                reason = "it was imported before jetson_mamba was activated"
                advice = "import jetson_mamba first"
            self.leave(name, reason, advice)

    def leave(self, name: str, reason: str, advice: str) -> None:
        """Note that a target stays upstream's own, and say so; in strict mode, refuse it."""
        import warnings

        message = f"{name} stays as it is installed: {reason}. What to do: {advice}."
        if self.strict:
            # Not noted as said: whoever catches this ImportError meets it again.
            raise ImportError(message, name=name)
        self.outcomes[name] = reason
        # leave, its caller, what the import system called; then whoever imports.
        warnings.warn(message, RuntimeWarning, stacklevel=4)


class Loader:
    """Runs the modified copy of a target as the module, or upstream's own where there is none.

    Everything else that is asked of a loader is answered by the one that reads the copy.
    """

    def __init__(self, finder: Finder, spec: "ModuleSpec") -> None:
        self.finder = finder
        self.spec = spec
        self.original = spec.loader
        self.outcome: object = None
        self._chosen: Any = None

    def create_module(self, spec: "ModuleSpec") -> "Optional[ModuleType]":
        """The module that the original loader would make, mostly None for the usual one."""
        return self.original.create_module(spec) if self.original else None

    def exec_module(self, module: "ModuleType") -> None:
        """Run the copy in ``module``, whose file it becomes."""
        chosen = self._choose()
        if chosen is not self.original:
            module.__file__ = self.spec.origin
            vars(module)["__cached__"] = self.spec.cached
        chosen.exec_module(module)

    def __getattr__(self, name: str) -> "Any":
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._choose(), name)

    def _choose(self) -> "Any":
        if self._chosen is None:
            try:
                from jetson_mamba import copies

                modified = copies.find(self.spec.name, self.original)
            except Exception as error:
                # Whatever it is, the program runs without the copy as it would without the hook.
                self.outcome, advice = _reason_and_advice(error)
                self._chosen = self.original
                self.finder.leave(self.spec.name, self.outcome, advice)
                return self._chosen
            if modified is None:
                self.outcome = "it needs no change"
                self._chosen = self.original
            else:
                self.outcome = modified
                self._chosen = copies.loader_for(modified, self.original)
                self.spec.origin = modified.path
                self.spec.cached = None
            self.finder.outcomes[self.spec.name] = self.outcome
        return self._chosen


def _reason_and_advice(error: Exception) -> "Tuple[str, str]":
    """Why there is no copy, and what to do about it."""
    if isinstance(error, (ImportError, OSError)):
        return (
            f"jetson_mamba is not installed whole ({error})",
            "pip install --force-reinstall --no-deps jetson-mamba",
        )
    reason = str(error)
    if type(error).__name__ != "Refused":
        reason = f"jetson_mamba failed on it ({type(error).__name__}: {error})"
    return (
        reason,
        "report the text of this mamba_ssm to the authors of jetson_mamba, or set "
        "JETSON_MAMBA=off to silence this",
    )
