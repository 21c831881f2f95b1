"""Whether the Triton of this process can serve a text of mamba_ssm, with the reason if not.

Three things may be wrong: there is none, it cannot be imported, or it is too old for the text. The
first is found out without importing anything; the others when a text is imported that would import
Triton itself.
"""

from __future__ import annotations

import re
import sys
from functools import lru_cache
from types import ModuleType
from typing import Any

# An import of Triton anywhere in a text, and one that nothing can keep from running.
BEFORE = rb"(?:lazy[ \t]+)?(?:from|import(?:[ \t]+[\w. \t]+,)*)[ \t]+"
IMPORT = re.compile(rb"(?:^|[;:])[ \t]*" + BEFORE + rb"triton\b", re.MULTILINE)
AT_ONCE = re.compile(rb"^" + BEFORE + rb"triton\b", re.MULTILINE)
# What a text takes of Triton while it is imported, and of that what every Triton has.
TAKEN = re.compile(rb"^@?triton\.(\w+)", re.MULTILINE)
ALWAYS = frozenset((b"jit", b"heuristics", b"Config", b"cdiv", b"next_power_of_2"))
# From here on nothing asks for a driver before a kernel is launched, as 3.2 and 3.3 do.
ALLOCATES = (3, 4)
NOT_INSTALLED = "Triton is not installed"

# Why a text was last imported without Triton, and whether a reason was told.
_reason = NOT_INSTALLED
_said = False


def concerns(source: bytes) -> bool:
    """Whether a text imports Triton."""
    return b"triton" in source and IMPORT.search(source) is not None


def reason_against(source: bytes, importing: bool = False) -> str | None:
    """Why the Triton that is there cannot serve a text, as part of a sentence; None if it can.

    ``importing`` says that the text is imported now: then Triton is, if the text would do so. Else
    it is known only where another was.
    """
    if not concerns(source):
        return None
    if not is_installed():
        return NOT_INSTALLED
    if not (importing and AT_ONCE.search(source)) and not _imported.cache_info().currsize:
        return None
    module, reason = _imported()
    if module is None:
        return reason
    for name in sorted({*TAKEN.findall(source)} - ALWAYS):
        lacking = _lacking(module, name.decode())
        if lacking is not None:
            return lacking
    return None


@lru_cache(maxsize=None)
def is_installed() -> bool:
    """Whether there is a Triton to import: a folder of that name alone is none."""
    from importlib.util import find_spec

    try:
        spec = find_spec("triton")
    except (ImportError, ValueError, AttributeError):  # what is in its place has no spec
        return "triton" in sys.modules
    return spec is not None and spec.origin not in (None, "namespace")


def is_importable() -> bool:
    """Whether Triton can be imported, which it is where it is installed."""
    return is_installed() and _imported()[0] is not None


def note(name: str, reason: str) -> None:
    """Remember why a module is imported without Triton; where one is installed, warn once."""
    global _reason, _said  # noqa: PLW0603 - what launching a placeholder says
    _reason = reason
    if reason == NOT_INSTALLED or _said:
        return
    _said = True
    import warnings

    warnings.warn(
        f"{reason}, so {name} is imported without Triton, and what its kernels would compute is "
        f"computed by jetson_mamba where it can. What to do: {advice()}.",
        RuntimeWarning,
        stacklevel=2,
    )


def reason() -> str:
    """Why a text was last imported without Triton."""
    return _reason


def advice() -> str:
    """What to do to have a Triton that serves: it depends on the torch and the machine."""
    return "`jetson-mamba doctor` names the command"


@lru_cache(maxsize=None)
def _imported() -> tuple[ModuleType | None, str]:
    """Triton, or why it cannot be imported."""
    try:
        import triton
    except Exception as error:  # whatever a half Triton raises, upstream could not import it
        line = str(error).strip().partition("\n")[0]
        return None, f"Triton cannot be imported ({type(error).__name__}: {line})"
    if not hasattr(triton, "jit"):
        return None, f"what is imported as triton is none ({triton!r})"
    return triton, ""


@lru_cache(maxsize=None)
def _lacking(module: Any, name: str) -> str | None:
    version = str(getattr(module, "__version__", "of an unknown version"))
    if not hasattr(module, name):
        return f"Triton {version} has no {name}"
    try:
        if name == "autotune":
            # 3.2 asks for a driver when a kernel is decorated, before there is anything to launch.
            module.autotune(configs=[module.Config({})], key=[])(module.jit(_kernel))
        if name == "set_allocator" and _numbers(version) < ALLOCATES:
            # The text that asks sets one of its own in a moment.
            module.set_allocator(_allocate)
    except Exception as error:  # a driver that is not there, in the words of its Triton
        return f"Triton {version} cannot be used here ({name}: {error})"
    return None


def _kernel(x: Any) -> None:
    """What is decorated to see whether that can be done, and never launched."""


def _allocate(size: int, alignment: int, stream: int | None) -> Any:
    import torch

    return torch.empty(size, device="cuda", dtype=torch.int8)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))
