"""What the tests of the ops begin with: one thread, since they compute small things, and graphs."""

from __future__ import annotations

import gc
from functools import partial
from typing import Iterator

import pytest
import torch

from jetson_mamba.replay import captured
from tests.ops.imitated import Imitated
from tests.ops.small_op import Make, small_op

real_stream = captured._stream


@pytest.fixture(autouse=True, scope="module")
def collected() -> None:
    """Let the collector pass over what other files have imported, where tests ask what is freed."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> Iterator[None]:
    """Give torch one thread for the time of these tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def stream(first: torch.Tensor) -> int | None:
    """That of a GPU, were this tensor on one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "is_cuda", True)
        patch.setattr(torch.Tensor, "get_device", lambda self: 0)
        patch.setattr(torch._C, "_cuda_isCurrentStreamCapturing", lambda: False, raising=False)
        patch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda index: 0, raising=False)
        return real_stream(first)


@pytest.fixture
def imitated(monkeypatch: pytest.MonkeyPatch) -> list[Imitated]:
    """The graphs that were made, which imitate those of a GPU."""
    Imitated.made = []
    monkeypatch.setattr(captured, "_capture", Imitated)
    monkeypatch.setattr(captured, "_stream", stream)
    monkeypatch.setattr(captured, "_has_place", lambda device, stream: True)
    monkeypatch.setattr(captured, "is_small", lambda first, _: type(first) is torch.Tensor)
    monkeypatch.setattr(captured, "is_on_gpu", lambda first: type(first) is torch.Tensor)
    monkeypatch.setattr(captured, "MEMORY", captured.Memory())
    return Imitated.made


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Make:
    """An op whose backends are modules made of the given functions, in that order."""
    return partial(small_op, monkeypatch)
