"""Lets a user name the backend of an op, by ``JETSON_MAMBA_BACKEND`` or in a ``with`` block.

The variable holds for a whole process: ``cuda`` names that backend for every op that has it,
``causal_conv1d=package,selective_scan=cuda`` one for each op that is listed. It is read once,
when ``jetson_mamba.ops`` is first imported; a value that is not understood is ignored, with a
warning. :func:`backend` names them for a ``with`` block, whatever the variable says.
"""

from __future__ import annotations

import os
import sys
import warnings
from contextlib import contextmanager
from typing import Any, ContextManager, Iterator, Mapping, TypeVar

from jetson_mamba import forks
from jetson_mamba.dispatch.backends import Op, Selection

VARIABLE = "JETSON_MAMBA_BACKEND"
AnyOp = TypeVar("AnyOp", bound=Op[Any, Any])
# The ops whose backend can be named, each of which registers itself.
OPS: dict[str, Op[Any, Any]] = {}

_from_variable: dict[str, Selection] = {}
# The blocks that are entered and not left, the latest last. Blocks of several threads need not
# nest, so each takes away its own entry and the latest that is left decides.
_blocks: list[dict[str, Selection | None]] = []
_lock = forks.lock(sys.modules[__name__], "_lock")


def register(op: AnyOp) -> AnyOp:
    """Let a user name the backend of an op, also where the op takes the place of an earlier one."""
    with _lock:
        OPS[op.name] = op
        _put_into_force({op.name: None})
    return op


def backend(**names: str | None) -> ContextManager[None]:
    """Name the backend of ops for a ``with`` block: ``backend(selective_scan="cuda")``.

    Keywords are the ops ``causal_conv1d``, ``selective_scan`` and ``ssd``; values are their
    backends (``package``, ``extension``, ``cuda``, ``triton``, ``pytorch``: those that the op has)
    or None, by which the op picks in its order even where something else names one.

    A backend that is named serves every call of its op; where it cannot, the call raises a
    RuntimeError. A backward pass runs on what is in force when it runs, but for that of
    ``causal_conv1d_fn``, which runs on its forward's. What was in force before is put back at
    the end of the block, also after an exception. This holds for the whole process: threads
    that run at the same time are served alike.

    Raises ValueError for an op or a backend that there is not.
    """
    block: dict[str, Selection | None] = {}
    for op, name in names.items():
        if op not in OPS:
            raise ValueError(f"backend: expected ops among {', '.join(OPS)}, found {op!r}")
        block[op] = None
        if name is not None:
            _check_backend(op, name)
            undo = f"leave the block of `with jetson_mamba.backend({op}={name!r})`"
            block[op] = Selection(name, "jetson_mamba.backend", undo)
    return _entered(block)


def read_variable() -> None:
    """Put into force what ``JETSON_MAMBA_BACKEND`` names, with a RuntimeWarning if it is wrong."""
    value = os.environ.get(VARIABLE)
    if not value:
        return
    try:
        named = parse(value)
    except ValueError as error:
        warnings.warn(f"{VARIABLE}={value}: {error}; ignored", RuntimeWarning, stacklevel=2)
        return
    undo = f"unset {VARIABLE} and start again"
    _from_variable.update({op: Selection(name, VARIABLE, undo) for op, name in named.items()})
    with _lock:
        _put_into_force(_from_variable)


def parse(value: str) -> dict[str, str]:
    """The backend of each op that a value of ``JETSON_MAMBA_BACKEND`` names.

    Raises ValueError for an op or a backend that there is not, saying what there is.
    """
    if "=" not in value:
        name = value.strip()
        everywhere = {op: name for op, each in OPS.items() if name in each.order}
        if not everywhere:
            known = dict.fromkeys(each for op in OPS.values() for each in op.order)
            raise ValueError(
                f"expected one of {', '.join(known)}, or pairs such as selective_scan=pytorch, "
                f"found {name!r}"
            )
        return everywhere
    named: dict[str, str] = {}
    for pair in value.split(","):
        op, _, name = (part.strip() for part in pair.partition("="))
        if op not in OPS:
            raise ValueError(f"expected ops among {', '.join(OPS)}, found {op!r}")
        if op in named:
            raise ValueError(f"expected {op} once, found it twice")
        _check_backend(op, name)
        named[op] = name
    return named


def _check_backend(op: str, name: str) -> None:
    if name not in OPS[op].order:
        raise ValueError(f"{op}: expected one of {', '.join(OPS[op].order)}, found {name!r}")


@contextmanager
def _entered(block: dict[str, Selection | None]) -> Iterator[None]:
    with _lock:
        _blocks.append(block)
        _put_into_force(block)
    try:
        yield
    finally:
        with _lock:
            _blocks[:] = [each for each in _blocks if each is not block]
            _put_into_force(block)


def _put_into_force(changed: Mapping[str, Selection | None]) -> None:
    """Give each op that is in ``changed`` what the latest block, or the variable, names for it."""
    for op in changed:
        latest = next((block for block in reversed(_blocks) if op in block), _from_variable)
        OPS[op].select(latest.get(op))
