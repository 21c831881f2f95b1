"""The packages besides Triton that kernels of mamba_ssm are written in.

Mamba-3's are in tilelang and in CuTe's Python, which are installed apart and are made for few GPUs.
A text that imports one of them can be imported all the same, with a placeholder in its place.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from importlib import import_module
from typing import NamedTuple

from jetson_mamba import advice, triton_there

TRITON = "triton"


class Kind(NamedTuple):
    """A language of kernels.

    ``marks`` are packages whose import says that a text is written in it; ``modules`` what is
    imported to know that it is there, and ``install`` what pip calls it.
    """

    marks: tuple[str, ...]
    modules: tuple[str, ...]
    install: str


KINDS = {
    "tilelang": Kind(("tilelang",), ("tilelang",), "tilelang"),
    "cute": Kind(
        ("cutlass", "quack"),
        ("cutlass.cute", "quack", "cuda.bindings.driver"),
        "nvidia-cutlass-dsl quack-kernels",
    ),
}
_IMPORTS = {
    name: re.compile(
        rb"(?:^|[;:])[ \t]*" + triton_there.BEFORE + rb"(?:%s)\b" % "|".join(kind.marks).encode(),
        re.MULTILINE,
    )
    for name, kind in KINDS.items()
}


def concerns(source: bytes) -> bool:
    """Whether a text imports any of these, or Triton."""
    return triton_there.concerns(source) or any(languages(source))


def lacking(source: bytes, importing: bool = False) -> dict[str, str]:
    """The languages, Triton among them, that a text imports and cannot have, and why of each.

    ``importing`` says that the text is imported now: then they are, as the text would do. Else it
    is known only of what is not installed.
    """
    found = {}
    reason = triton_there.reason_against(source, importing=importing)
    if reason is not None:
        found[TRITON] = reason
    for name in languages(source):
        reason = _reason(name) if importing else _not_installed(name)
        if reason is not None:
            found[name] = reason
    return found


def note(module: str, lacks: dict[str, str]) -> None:
    """Remember why a module is imported without them; warn once of what is there and fails."""
    for name, reason in lacks.items():
        if name == TRITON:
            triton_there.note(module, reason)
        elif _not_installed(name) is None:
            _warn(name, reason)


def is_importable(name: str) -> bool:
    """Whether what kernels in this language need can be imported, which it is."""
    return _reason(name) is None


def languages(source: bytes) -> list[str]:
    """The languages beside Triton that a text imports."""
    return [name for name, pattern in _IMPORTS.items() if pattern.search(source)]


@lru_cache(maxsize=None)
def _not_installed(name: str) -> str | None:
    from importlib.util import find_spec

    for module in KINDS[name].modules:
        package = module.partition(".")[0]
        try:
            there = find_spec(package) is not None
        except (ImportError, ValueError, AttributeError):  # what is in its place has no spec
            there = True
        if not there:
            return f"{package} is not installed"
    return None


@lru_cache(maxsize=None)
def _reason(name: str) -> str | None:
    absent = _not_installed(name)
    if absent is not None:
        return absent
    for module in KINDS[name].modules:
        try:
            import_module(module)
        except Exception as error:  # whatever a half package raises, upstream could not import it
            line = str(error).strip().partition("\n")[0]
            return f"{module} cannot be imported ({type(error).__name__}: {line})"
    return None


@lru_cache(maxsize=None)
def _warn(name: str, reason: str) -> None:
    warnings.warn(
        f"{reason}, so what Mamba-3's kernels in it would compute is computed by jetson_mamba "
        f"where it can. What to do: {advice.pip()} install --upgrade {KINDS[name].install}.",
        RuntimeWarning,
        stacklevel=3,
    )
