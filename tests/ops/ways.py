"""Leads the calls of an op one way, whatever the call would choose."""

from __future__ import annotations

from contextlib import contextmanager
from types import ModuleType
from typing import Any, Iterator

import pytest
from torch.utils._python_dispatch import TorchDispatchMode

from jetson_mamba.dispatch.paths import Way


class Listening(TorchDispatchMode):
    """Sees every operation, and does nothing; ``seen`` are their names."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call it."""
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@contextmanager
def going(way: Way, *ops: ModuleType) -> Iterator[None]:
    """Calls of the ops go this way inside the ``with`` block."""
    if way is Way.OPERATORS:
        with Listening():
            yield
        return
    with pytest.MonkeyPatch.context() as patch:
        for op in ops:
            patch.setattr(op, "way", lambda *tensors: way)
            patch.setattr(op, "way_back", lambda *tensors: way, raising=False)
        yield
