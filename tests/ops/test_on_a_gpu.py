"""Kernels that are made for few GPUs are tried by their first call on each.

Where they fail they are given up. The GPUs are imitated: a tensor says which it is on.
"""

from __future__ import annotations

import warnings
from typing import Any, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba import kernel_packages
from jetson_mamba.dispatch import triton_dispatch
from jetson_mamba.dispatch.triton_dispatch import on_a_gpu

CPU, FIRST, SECOND = (torch.device(name) for name in ("cpu", "cuda:0", "cuda:1"))


class Kernels:
    """A function of kernels that raises what it is told to, and what is computed otherwise."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.error: BaseException | None = None

    def function(self, x: Tensor, *, of: Any = None) -> str:
        """By kernels."""
        self.calls.append("kernels")
        if self.error is not None:
            raise self.error
        return "kernels"

    def otherwise(self, x: Tensor, *, of: Any = None) -> str:
        """By PyTorch."""
        self.calls.append("otherwise")
        return "otherwise"

    def made(self, *languages: str) -> Any:
        """The function that chooses."""

        def function(x: Tensor, *, of: Any = None) -> str:
            return self.function(x, of=of)

        return on_a_gpu(function, self.otherwise, *languages)


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[torch.device]]:
    """Where all tensors are; Triton runs there."""
    devices = [FIRST]
    monkeypatch.setattr(triton_dispatch, "triton_runs_on", lambda device: True)
    monkeypatch.setattr(Tensor, "device", property(lambda self: devices[-1]))
    yield devices
    monkeypatch.undo()


@pytest.fixture
def kernels() -> Kernels:
    return Kernels()


X = torch.ones(2)


@pytest.mark.parametrize("by_name", [False, True])
def test_what_fails_of_the_kernels_is_said_once_and_computed_otherwise_there(
    by_name: bool, where: list[torch.device], kernels: Kernels
) -> None:
    call = kernels.made()
    kernels.error = RuntimeError("no image for this device\nand more")
    given: Any = ((), {"x": X}) if by_name else ((X,), {})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            assert call(*given[0], **given[1]) == "otherwise"
    (warning,) = said
    text = str(warning.message)
    assert "function cannot run on cuda:0 (RuntimeError: no image for this device), so" in text
    assert issubclass(warning.category, RuntimeWarning)
    assert kernels.calls == ["kernels", *["otherwise"] * 3]
    # Another GPU has its own first call.
    where.append(SECOND)
    kernels.error = None
    assert call(X) == "kernels"
    where.append(FIRST)
    assert call(X) == "otherwise"


def test_what_has_run_once_raises_its_own_errors(
    where: list[torch.device], kernels: Kernels
) -> None:
    call = kernels.made()
    assert call(X) == "kernels"
    kernels.error = RuntimeError("an illegal access")
    with pytest.raises(RuntimeError, match="illegal access"):
        call(X)
    assert kernels.calls == ["kernels", "kernels"]


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("a shape"),
        TypeError("an argument"),
        ValueError("a number"),
        torch.cuda.OutOfMemoryError("CUDA out of memory"),
    ],
)
def test_an_error_of_the_call_or_one_that_may_pass_says_nothing_of_the_kernels(
    error: Exception, where: list[torch.device], kernels: Kernels
) -> None:
    call = kernels.made()
    kernels.error = error
    with pytest.raises(type(error), match=str(error)):
        call(X)
    kernels.error = None
    assert call(X) == "kernels"


def test_elsewhere_than_on_an_nvidia_gpu_they_are_not_tried(
    where: list[torch.device], kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = kernels.made()
    where.append(CPU)
    assert call(X) == "otherwise"
    where.append(FIRST)
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.0")
        assert call(X) == "otherwise"
    with monkeypatch.context() as patch:
        patch.setattr(triton_dispatch, "triton_runs_on", lambda device: False)
        assert call(X) == "otherwise"
    assert "kernels" not in kernels.calls
    assert call(X) == "kernels"


@pytest.mark.parametrize("there", [{"one"}, {"one", "other"}, set()])
def test_every_language_of_the_kernels_must_be_there(
    there: set[str],
    where: list[torch.device],
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kernel_packages, "is_importable", there.__contains__)
    expected = "kernels" if there == {"one", "other"} else "otherwise"
    assert kernels.made("one", "other")(X) == expected


@pytest.mark.parametrize(("there", "counted"), [(True, True), (True, False), (False, True)])
def test_while_a_graph_is_traced_kernels_count_where_they_are_there(
    there: bool,
    counted: bool,
    where: list[torch.device],
    kernels: Kernels,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def counts(kind: str) -> bool:
        asked.append(kind)
        return counted

    monkeypatch.setattr(kernel_packages, "is_importable", lambda name: there)
    monkeypatch.setattr(triton_dispatch, "counts_while_compiling", counts)
    monkeypatch.setattr(triton_dispatch, "is_compiling", lambda: True)
    call = kernels.made("one")
    assert call(X) == ("kernels" if there and counted else "otherwise")
    assert asked == (["cuda"] if there else [])
    # What fails there is a graph's, and not told.
    if there and counted:
        kernels.error = RuntimeError("while it is traced")
        with pytest.raises(RuntimeError, match="while it is traced"):
            call(X)


def test_without_its_first_argument_the_function_says_what_is_wrong(
    where: list[torch.device], kernels: Kernels
) -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        kernels.made()(of=X)
