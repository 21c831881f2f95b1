"""Where Triton should run, a first launch says whether it does; imitated, without a GPU."""

from __future__ import annotations

import warnings
from typing import Any, Callable

import pytest
import torch

from jetson_mamba import ops, triton_there
from jetson_mamba.dispatch import triton_dispatch, triton_runs

GPU = torch.device("cuda", 0)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """What the next launches raise, the first first; a GPU is there."""
    answers: list[BaseException | None] = []

    def launch(device: torch.device) -> None:
        assert device.type == "cuda" and device.index in (0, 1)
        error = answers.pop(0)
        if error is not None:
            raise error

    monkeypatch.setattr(triton_runs, "_answers", triton_runs._Answers())
    monkeypatch.setattr(triton_runs, "_launch", launch)
    monkeypatch.setattr(triton_there, "is_importable", lambda: True)
    monkeypatch.setattr(triton_runs, "_is_interpreted", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    return answers


FAILURES = [
    RuntimeError("ptxas fatal   : Value 'sm_110a' is not defined for option 'gpu-name'"),
    RuntimeError("Failed to find C compiler. Please specify via CC environment variable."),
    FileNotFoundError(2, "No such file or directory", "/sbin/ldconfig"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda each: type(each).__name__)
def test_a_first_launch_that_fails_is_told_once_and_kept(
    error: Exception, launches: list[BaseException | None]
) -> None:
    launches.append(error)
    with pytest.warns(RuntimeWarning, match="Triton launches nothing on cuda:0") as said:
        assert not ops.triton_runs_on(GPU)
    assert str(error).partition("\n")[0] in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not ops.triton_runs_on(GPU)
        assert not triton_runs.counts_while_compiling("cuda")
        launches.append(error)  # another GPU of the same machine
        assert not ops.triton_runs_on(torch.device("cuda", 1))
    assert launches == []


def test_a_launch_that_goes_well_is_the_only_one(launches: list[BaseException | None]) -> None:
    launches.append(None)
    assert [ops.triton_runs_on(GPU) for _ in range(3)] == [True] * 3
    assert triton_runs.counts_while_compiling("cuda")


def test_a_gpu_without_room_is_asked_again(launches: list[BaseException | None]) -> None:
    launches += [torch.cuda.OutOfMemoryError("CUDA out of memory"), FAILURES[0]]
    assert ops.triton_runs_on(GPU)
    with pytest.warns(RuntimeWarning, match="ptxas"):
        assert not ops.triton_runs_on(GPU)


def test_nothing_is_launched_while_a_graph_is_captured(
    launches: list[BaseException | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as captured:
        captured.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
        assert ops.triton_runs_on(GPU)
    launches.append(None)
    assert ops.triton_runs_on(GPU)
    assert launches == []


def test_nothing_is_launched_for_other_devices(launches: list[BaseException | None]) -> None:
    assert not ops.triton_runs_on(torch.device("cpu"))
    assert not triton_runs.counts_while_compiling("cpu")


def test_what_is_compiled_for_a_gpu_elsewhere_launches_kernels(
    launches: list[BaseException | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert triton_runs.counts_while_compiling("cuda")
    monkeypatch.setattr(triton_there, "is_importable", lambda: False)
    assert not triton_runs.counts_while_compiling("cuda")


def test_a_function_goes_to_its_op_where_the_launch_fails(
    launches: list[BaseException | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu: Callable[[Any], bool] = triton_runs.triton_runs_on
    monkeypatch.setattr(triton_dispatch, "triton_runs_on", lambda device: on_gpu(GPU), raising=True)
    launches.append(FAILURES[0])
    function = ops.where_triton_runs(lambda x: "launched", lambda x: "computed")
    with pytest.warns(RuntimeWarning, match="ptxas"):
        assert function(torch.zeros(1)) == "computed"
    assert function(torch.zeros(1)) == "computed"
