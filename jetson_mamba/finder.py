"""The finder that hands over modified copies while Python imports the targets.

This module is imported at every interpreter start, so it imports nothing but ``sys``, lies in no
package within this one, which would be imported as well, and holds what every import passes
through; what an import of a target needs is in ``hook.loader``.
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
    "mamba_ssm.ops.triton.k_activations",
    "mamba_ssm.ops.triton.selective_state_update",
    "mamba_ssm.modules.mamba_simple",
    "mamba_ssm.modules.mamba2",
    "mamba_ssm.modules.mamba2_simple",
    "mamba_ssm.utils.hf",
    "mamba_ssm.modules.mha",
    "mamba_ssm.models.mixer_seq_simple",
    "mamba_ssm.ops.triton.ssd_bmm",
    "mamba_ssm.ops.triton.ssd_chunk_state",
    "mamba_ssm.ops.triton.ssd_state_passing",
    "mamba_ssm.ops.triton.ssd_chunk_scan",
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_combined",
    "mamba_ssm.ops.triton.mamba3.mamba3_siso_step",
    "mamba_ssm.ops.triton.mamba3.mamba3_mimo_rotary_step",
    "mamba_ssm.ops.tilelang.mamba3.mamba3_mimo",
    "mamba_ssm.ops.cute.mamba3.mamba3_step_fn",
)
# What an unmodified target imports: seeing it asked for shows that a target went past the finder.
EXTENSIONS = ("selective_scan_cuda", "causal_conv1d", "causal_conv1d_cuda")
# What a stand-in takes the place of: those, and the scan as VMamba's package builds it.
STAND_INS = (
    *EXTENSIONS,
    "selective_scan_cuda_core",
    "selective_scan_cuda_oflex",
    "selective_scan_cuda_ndstate",
    "selective_scan_cuda_nrow",
)
# Modules of transformers that stay as they are; what is in them is joined to the ops afterwards.
JOINED = (
    "transformers.models.mamba.modeling_mamba",
    "transformers.models.mamba2.modeling_mamba2",
    "transformers.integrations.hub_kernels",
)
# What is looked at any further: by the last part of a name, and by how the part before begins.
PACKAGE = "mamba_ssm"
WATCHED = frozenset([name[name.rfind(".") + 1 :] for name in TARGETS + STAND_INS + JOINED])
_tails: "Dict[str, str]" = {}


class Finder:
    """Finds the targets where the finders after it do, and puts a loader around theirs.

    ``outcomes`` says what became of each target when it was last imported: the
    :class:`~jetson_mamba.hook.copies.ModifiedCopy` that runs, or why it is upstream's own.
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
        """The spec that the finders after this one have, with a loader of ours in it."""
        parent, _, last = fullname.rpartition(".")
        if last not in WATCHED and parent[:9] != PACKAGE:
            return None
        known, beside = fullname, False
        if fullname not in TARGETS + STAND_INS + JOINED:
            ends = tails()
            known = ends.get(last) or ends.get(f"{parent.rpartition('.')[2]}.{last}") or ""
            # Another word, no module of a package, or an override.
            beside = not known and fullname.startswith("mamba_ssm.")
            if not (known or beside) or path is None or fullname.startswith("jetson_mamba."):
                return None
        try:
            from jetson_mamba.hook import loader
        except ImportError:  # half uninstalled
            return None
        if fullname in JOINED:
            return loader.spec_joined(self, fullname, path, target)
        if fullname in STAND_INS:
            loader.warn_of_bypassed_targets(self)
            return loader.spec_of_extension(self, fullname, path, target)
        if beside:
            return loader.spec_beside(self, fullname, path, target)
        return loader.spec_of_target(self, fullname, known, path, target)

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
            from jetson_mamba.hook.stand_in import metadata
        except ImportError:  # half uninstalled
            return iter(())
        return metadata.distributions(self, context)


def tails() -> "Dict[str, str]":
    """How the names of the targets end in a package that is a copy of mamba-ssm.

    The first two as nothing else does; the others, which are common words, with their folder.
    """
    if not _tails:  # which most processes never ask for
        for name in TARGETS:
            _tails[".".join(name.split(".")[-1 if name in TARGETS[:2] else -2 :])] = name
    return _tails


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
    """Whether it is a "Finder" or a "Loader" of ours, also as an earlier import defined it."""
    module = __name__ if name == "Finder" else "jetson_mamba.hook.loader"
    return any(
        kind.__name__ == name and getattr(kind, "__module__", None) == module
        for kind in type(thing).__mro__
    )


def loader_of(module: object) -> "Any":
    """What loaded a module; None for one that no file is behind, as a test's stub."""
    spec = getattr(module, "__spec__", None)
    loader = getattr(spec, "loader", None)
    if is_a(loader, "Loader"):
        return loader
    return loader if isinstance(getattr(spec, "origin", None), str) else None
