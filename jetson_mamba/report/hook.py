"""The hook, as a program that starts here meets it: who activates it, what comes before it."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from typing import Any

from jetson_mamba.finder import TARGETS
from jetson_mamba.hook import copies, snapshot
from jetson_mamba.report.installed import module_file
from jetson_mamba.report.status import Target, outcome_of, with_copy
from jetson_mamba.rewrite import Refused
from jetson_mamba.startup import files

NOT_WHOLE = "jetson_mamba is not installed whole"


@dataclass(frozen=True)
class Hook:
    """The hook.

    ``active`` is what a program meets that knows nothing of this package; a program may also
    import it itself. ``mode`` is what JETSON_MAMBA says. ``finders`` are those on
    ``sys.meta_path`` in their order; ``taken_by`` is a finder before ours that takes a target.
    ``too_late`` are targets that were imported before the hook was there. ``refused`` says why a
    target would stay upstream's own.
    """

    active: bool
    mode: str
    startup_files: tuple[files.StartupFile, ...]
    finders: tuple[str, ...]
    taken_by: str | None
    too_late: tuple[str, ...]
    targets: tuple[Target, ...]
    refused: dict[str, str]


def hook(package: str | None) -> Hook:
    """The hook as it is in this process, and what it would do with the mamba_ssm in a folder."""
    refused: dict[str, str] = {}
    targets = tuple(_target(name, package, refused) for name in TARGETS) if package else ()
    found = snapshot.hook()
    return Hook(
        active=found.activated_by == "startup file",
        mode=os.environ.get("JETSON_MAMBA") or "on",
        startup_files=tuple(files.installed()),
        finders=tuple(_name(finder) for finder in sys.meta_path),
        taken_by=_taken_by(package, found.before),
        too_late=tuple(
            name
            for name in TARGETS
            if name in sys.modules and outcome_of(sys.modules[name]) is None
        ),
        targets=targets,
        refused=refused,
    )


def _target(name: str, package: str, refused: dict[str, str]) -> Target:
    path = module_file(package, name)
    if not os.path.exists(path):
        return Target(name, "not imported", None, None, 0, "this mamba_ssm does not have it")
    try:
        modified = copies.find(name, SourceFileLoader(name, path))
    except Refused as refusal:
        refused[name] = str(refusal)
    except (ImportError, OSError) as error:
        refused[name] = f"{NOT_WHOLE} ({error})"
    if name in refused:
        return Target(name, "not imported", None, path, 0, refused[name])
    if modified is None:
        return Target(name, "not imported", None, path, 0, "it needs no change")
    return with_copy(name, "not imported", modified)


def _taken_by(package: str | None, finders: tuple[object, ...]) -> str | None:
    """One of the finders before ours that has a spec for the first target."""
    if package is None:
        return None
    folder = os.path.dirname(module_file(package, TARGETS[0]))
    for finder in finders:
        find_spec: Any = getattr(finder, "find_spec", None)
        try:
            spec: ModuleSpec | None = find_spec(TARGETS[0], [folder], None) if find_spec else None
        except Exception as error:  # a finder that raises stops the import of everything
            return f"{_name(finder)}, which raises {type(error).__name__}: {error}"
        if spec is not None:
            return _name(finder)
    return None


def _name(finder: object) -> str:
    kind = finder if isinstance(finder, type) else type(finder)
    return f"{kind.__module__}.{kind.__qualname__}"
