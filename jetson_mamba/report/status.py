"""What the package does in this process: active or not, each target's copy, each op's backend.

This imports no torch: ops are reported if the process has imported them already.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from importlib.util import find_spec
from typing import Any

import jetson_mamba
from jetson_mamba.finder import TARGETS, is_a, loader_of
from jetson_mamba.hook import copies
from jetson_mamba.hook.snapshot import hook
from jetson_mamba.rewrite import Refused
from jetson_mamba.startup.files import StartupFile, installed


@dataclass(frozen=True)
class PassedOver:
    """A backend that comes earlier in an op's order, and why it does not serve."""

    backend: str
    reason: str


@dataclass(frozen=True)
class LeftOut:
    """A way past one of upstream's functions that a copy does without, and why."""

    what: str
    reason: str


@dataclass(frozen=True)
class Target:
    """What became of one target, or of a module of another package that is modified as one.

    ``state`` is "modified", "original" (upstream's own runs, ``reason`` says why) or "not
    imported". ``copy`` is where the modified copy came from ("bundled", "cached" or "made"),
    ``path`` the file that runs. For a target that is not imported they say what would run, if
    that was asked for and is known.
    """

    name: str
    state: str
    copy: str | None
    path: str | None
    edits: int
    reason: str | None
    left_out: tuple[LeftOut, ...] = ()


@dataclass(frozen=True)
class Backend:
    """The backend that serves one case of an op.

    ``case`` holds whatever decides, as text: always the device, often a dtype.
    """

    op: str
    case: dict[str, str]
    backend: str
    passed_over: tuple[PassedOver, ...]


@dataclass(frozen=True)
class Selected:
    """A backend that serves every case of an op because ``asked_by`` names it."""

    op: str
    backend: str
    asked_by: str


@dataclass(frozen=True)
class Status:
    """What the package does in this process.

    ``activated_by`` is "import" or "startup file", None where the package is not active;
    ``mode`` is what JETSON_MAMBA says: "on", "strict" or "off". ``startup_files`` are the files
    in ``site-packages`` that activate it in every interpreter. ``backend_variable`` is the value
    of JETSON_MAMBA_BACKEND, which the ops read when they are imported, and ``selections`` are
    the backends that are named as long as this holds.
    """

    version: str
    active: bool
    activated_by: str | None
    mode: str
    startup_files: tuple[StartupFile, ...]
    targets: tuple[Target, ...]
    backend_variable: str | None
    selections: tuple[Selected, ...]
    backends: tuple[Backend, ...]


def status(look_ahead: bool = False) -> Status:
    """The state of this process.

    ``look_ahead`` finds out, without importing mamba_ssm, which copy each target that is not
    imported would get; like an import, that keeps a copy which has to be made.
    """
    found = hook()
    return Status(
        version=jetson_mamba.__version__,
        active=found.active,
        activated_by=found.activated_by,
        mode=found.mode,
        startup_files=tuple(installed()),
        targets=(*(_target(name, look_ahead) for name in TARGETS), *_of_other_packages()),
        backend_variable=os.environ.get("JETSON_MAMBA_BACKEND") or None,
        selections=_selections(),
        backends=_backends(),
    )


def with_copy(name: str, state: str, modified: Any) -> Target:
    """A target that runs, or would run, from a :class:`~jetson_mamba.hook.copies.ModifiedCopy`."""
    left_out = tuple(LeftOut(*each) for each in getattr(modified, "left_out", ()))
    return Target(name, state, modified.origin, modified.path, modified.edits, None, left_out)


def outcome_of(module: object) -> object:
    """What the hook made of a module: its copy, or why it has none; None if it did not load it."""
    loader = loader_of(module)
    return loader.outcome if is_a(loader, "Loader") else None


def _target(name: str, look_ahead: bool) -> Target:
    module = sys.modules.get(name)
    if module is None:
        return _expected(name) if look_ahead else Target(name, "not imported", None, None, 0, None)
    outcome = outcome_of(module)
    if outcome is not None and not isinstance(outcome, str):
        return with_copy(name, "modified", outcome)
    if outcome is None and loader_of(module) is None:
        outcome = "what is imported under its name is no module of a file"
    if outcome is None:
        remembered = hook().outcomes.get(name)
        outcome = remembered if isinstance(remembered, str) else None
    reason = str(outcome or "it was imported while jetson_mamba was not active")
    path = getattr(module, "__file__", None)
    return Target(name, "original", None, path if isinstance(path, str) else None, 0, reason)


def _of_other_packages() -> tuple[Target, ...]:
    """The modules that are modified as targets are, in copies of mamba-ssm of another name."""
    found = ((name, outcome_of(module)) for name, module in sorted(sys.modules.items()))
    return tuple(
        with_copy(name, "modified", outcome)
        for name, outcome in found
        if name not in TARGETS and outcome is not None and not isinstance(outcome, str)
    )


def _expected(name: str) -> Target:
    """What importing the target would give, from the files of the package that is installed."""
    package, *inside = name.split(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return Target(name, "not imported", None, None, 0, f"{package} is not installed")
    path = os.path.join(next(iter(spec.submodule_search_locations)), *inside) + ".py"
    if not os.path.exists(path):
        return Target(name, "not imported", None, None, 0, "this release does not have it")
    try:
        modified = copies.find(name, SourceFileLoader(name, path))
    except (Refused, ImportError, OSError) as refusal:  # the latter where half is uninstalled
        return Target(name, "not imported", None, path, 0, str(refusal))
    if modified is None:
        return Target(name, "not imported", None, path, 0, "it needs no change")
    return with_copy(name, "not imported", modified)


def _selections() -> tuple[Selected, ...]:
    selection = sys.modules.get("jetson_mamba.dispatch.selection")
    if selection is None:
        return ()
    return tuple(
        Selected(name, op.selection.backend, op.selection.asked_by)
        for name, op in sorted(selection.OPS.items())
        if op.selection is not None
    )


def _backends() -> tuple[Backend, ...]:
    """Every case that an op has met as it selects, in the order in which it met them."""
    machinery = sys.modules.get("jetson_mamba.dispatch.backends")
    if machinery is None:
        return ()
    ops = {
        id(op): op
        for name, module in sorted(sys.modules.items())
        if name.startswith("jetson_mamba.ops.")
        for op in vars(module).values()
        if isinstance(op, machinery.Op)
    }
    return tuple(
        Backend(
            op.name,
            {field: _text(value) for field, value in case._asdict().items()},
            choice.backend,
            tuple(PassedOver(*each) for each in choice.passed_over),
        )
        for op in ops.values()
        for case, choice in op.choices().items()
    )


def _text(value: Any) -> str:
    return str(value).rpartition("torch.")[2]
