"""What all tests of a process share, so that one which leaves it changed is told at once.

Else another fails for it, and only where it happens to run later.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, Callable, NamedTuple


class State(NamedTuple):
    """Something that a process has once: how it is read, and put back.

    ``module`` is the one that has it; where that is not imported, there is nothing to change.
    """

    module: str
    read: Callable[[Any], Any]
    put_back: Callable[[Any, Any], object]


def _own_finders(_: ModuleType) -> list[object]:
    # Libraries that are imported meanwhile may have brought theirs.
    return [each for each in sys.meta_path if type(each).__module__.startswith("jetson_mamba")]


def _put_finders_back(_: ModuleType, before: list[object]) -> None:
    others = [each for each in sys.meta_path if each not in _own_finders(sys)]
    sys.meta_path[:] = [*before, *others]  # type: ignore[list-item]


def _settings(_: ModuleType) -> dict[str, str]:
    """Variables that this package or its processes read; libraries set some of their own."""
    return {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("JETSON_MAMBA", "PYTHON", "TRITON_INTERPRET"))
        or name in ("HOME", "PATH", "TMPDIR", "CUDA_HOME", "XDG_CACHE_HOME")
    }


def _put_settings_back(here: ModuleType, before: dict[str, str]) -> None:
    for name in _settings(here).keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)


def _folders(here: ModuleType) -> list[str]:
    """But for the one that setuptools adds for itself once it is imported, as by inductor."""
    return [each for each in here.path if not each.endswith(os.path.join("setuptools", "_vendor"))]


def _put_path_back(here: ModuleType, before: list[str]) -> None:
    sys.path[:] = before


def _selected(selection: Any) -> tuple[Any, ...]:
    return len(selection._blocks), {name: op.selection for name, op in selection.OPS.items()}


def _select_again(selection: Any, before: tuple[Any, ...]) -> None:
    del selection._blocks[before[0] :]
    for name in selection.OPS.keys() - before[1].keys():
        del selection.OPS[name]
    for name, selected in before[1].items():
        selection.OPS[name].select(selected)


def _of_torch(get: str, put: str) -> State:
    """What torch has a function to tell and one to set."""
    return State(
        "torch",
        lambda torch: getattr(torch, get)(),
        lambda torch, was: getattr(torch, put)(was),
    )


SHARED = {
    "the finder": State("sys", _own_finders, _put_finders_back),
    "sys.path": State("sys", _folders, _put_path_back),
    "the environment": State("os", _settings, _put_settings_back),
    "the folder": State("os", lambda here: here.getcwd(), lambda here, was: here.chdir(was)),
    "the backends that are named": State(
        "jetson_mamba.dispatch.selection", _selected, _select_again
    ),
    "the inference path": State(
        "jetson_mamba.dispatch.paths",
        lambda paths: paths._inference,
        lambda paths, was: setattr(paths, "_inference", was),
    ),
    "torch's default dtype": _of_torch("get_default_dtype", "set_default_dtype"),
    "torch's threads": _of_torch("get_num_threads", "set_num_threads"),
    "whether torch keeps gradients": _of_torch("is_grad_enabled", "set_grad_enabled"),
    "whether torch is deterministic": _of_torch(
        "are_deterministic_algorithms_enabled", "use_deterministic_algorithms"
    ),
    "the precision of torch's products": _of_torch(
        "get_float32_matmul_precision", "set_float32_matmul_precision"
    ),
}


def states() -> dict[str, Any]:
    """Everything that is shared, as it is now."""
    imported = sys.modules
    return {
        name: state.read(imported[state.module])
        for name, state in SHARED.items()
        if state.module in imported
    }


def changed(before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What is not as it was, as it was and as it is now; it is put back."""
    now = states()
    found = {name: (was, now[name]) for name, was in before.items() if now[name] != was}
    for name, (was, _) in found.items():
        SHARED[name].put_back(sys.modules[SHARED[name].module], was)
    return found
