"""How an exported file is compared with its model, without a file."""

from __future__ import annotations

import math
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from jetson_mamba.errors import CannotRun
from jetson_mamba.export import check
from jetson_mamba.export.check import Check, Open


class Sum(nn.Module):
    """A model of (batch, seqlen, 4) and (batch,) that takes no more than ``most`` steps."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.most = most
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: Tensor, ids: Tensor) -> Any:
        """Two results of other dtypes."""
        if x.shape[1] > self.most:
            raise ValueError(f"at most {self.most}")
        self.seen.append((x.shape[0], x.shape[1]))
        return x * 2, ids + 1


class Session:
    """What ONNX Runtime makes of it, by ``function`` of numpy arrays."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.fed: list[dict[str, Any]] = []

    def get_inputs(self) -> Any:
        """Their names."""
        return [SimpleNamespace(name="x"), SimpleNamespace(name="ids")]

    def run(self, names: None, feed: dict[str, Any]) -> Any:
        """The results."""
        self.fed.append(feed)
        return self.function(feed["x"], feed["ids"])


def right(x: Any, ids: Any) -> Any:
    return [x * 2, ids + 1]


def given(batch: int = 2, seqlen: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(batch, seqlen, 4) + 3, torch.arange(batch)


def sizes(batch: int = 2, seqlen: int = 5, most: int = 1000, least: int = 1) -> dict[str, Open]:
    return {
        "batch": Open([(0, 0), (1, 0)], batch, 1, most),
        "seqlen": Open([(0, 1)], seqlen, least, most),
    }


def tried(
    model: Sum, opened: dict[str, Open], args: Any = None, function: Any = right
) -> list[Any]:
    made = Check(model, given() if args is None else args, opened, None)
    model.seen.clear()
    return list(made.at_other_sizes(Session(function)))


def test_a_file_is_compared_at_sizes_around_chunks_and_at_wider_ones() -> None:
    model = Sum()
    found = tried(model, sizes())
    assert [each.error for each in found] == [0.0] * len(found)
    expected = [(1, 5), (3, 5), (2, 1), (2, 63), (2, 65), (2, 11), (5, 11)]
    assert model.seen == expected
    assert [tuple(each.sizes.values()) for each in found] == expected


def test_what_a_size_may_not_be_is_left_out() -> None:
    for opened, expected in (
        (sizes(most=63), [(1, 5), (3, 5), (2, 1), (2, 63), (2, 11), (5, 11)]),
        (sizes(most=62, least=2), [(1, 5), (3, 5), (2, 11), (5, 11)]),
        ({"seqlen": sizes()["seqlen"]}, [(2, 1), (2, 63), (2, 65), (2, 11)]),
        ({}, [(2, 5)]),
    ):
        model = Sum()
        tried(model, opened)
        assert model.seen == expected
    # What the model itself does not take is none of the file's.
    model = Sum(most=20)
    assert [tuple(each.sizes.values()) for each in tried(model, sizes())] == model.seen
    assert (2, 63) not in model.seen and (5, 11) in model.seen
    # The size of the export is compared by itself.
    model = Sum()
    tried(model, sizes(batch=3, seqlen=65), given(3, 65))
    assert (3, 65) not in model.seen


def test_other_values_are_of_the_same_kind() -> None:
    session = Session(right)
    for _ in Check(Sum(), given(), sizes(), None).at_other_sizes(session):
        fed = session.fed[-1]
        assert fed["x"].dtype == np.float32 and fed["ids"].dtype == np.int64
        assert set(fed["ids"].tolist()) <= {0, 1}
        if fed["x"].size > 400:
            assert abs(fed["x"].mean() - 3) < 0.5 and abs(fed["x"].std() - 1) < 0.3
    constant = check._drawn(torch.tensor([7.0]), [3])
    assert constant.shape == (3,) and 0 < constant.std() < 5 and abs(constant.mean() - 7) < 5


def test_open_sizes_are_two_at_least_where_a_graph_is_made() -> None:
    """Of a size of 1 torch makes a constant."""
    args = given(1, 1)
    made = Check(Sum(), args, sizes(1, 1), None)
    assert [tuple(each.shape) for each in made.resized_to_two()] == [(2, 2, 4), (2,)]
    args = given(3, 1)
    made = Check(Sum(), args, sizes(3, 1), None)
    assert [tuple(each.shape) for each in made.resized_to_two()] == [(3, 2, 4), (3,)]
    args = given(2, 2)
    found = Check(Sum(), args, sizes(2, 2), None).resized_to_two()
    assert all(one is other for one, other in zip(found, args))


def test_an_error_is_the_largest_of_any_result_over_what_that_holds() -> None:
    wide, ids = torch.tensor([1.0, -4.0]), torch.tensor([3, 9])

    def error(first: Any, second: Any = (3, 9)) -> float:
        return check._error([np.array(first), np.array(second)], [wide, ids])

    assert error([1.0, -4.0]) == 0.0
    assert error([1.0, -3.0]) == 0.25
    assert error([1.5, -4.0]) == 0.125
    # Of whole numbers the difference counts.
    assert error([1.0, -4.0], [3, 7]) == 2.0
    assert error([2.0, -4.0], [3, 10]) == 1.0
    assert error([1.0, math.nan]) == math.inf
    assert error([1.0]) == math.inf
    # Nothing is compared of what is empty, and what is 0 is compared by the difference.
    assert check._error([np.zeros((0, 2))], [torch.empty(0, 3)]) == 0.0
    assert check._error([np.array([0.5])], [torch.zeros(1)]) == 0.5


def test_the_error_and_the_times_at_the_sizes_of_the_export() -> None:
    model = Sum()
    made = Check(model, given(), sizes(), None)
    session = Session(lambda x, ids: [x * 2 + 1, ids + 1])
    error, times = made.at_traced_sizes(session)
    scale = float((given()[0] * 2).abs().max())
    assert abs(error - 1 / scale) < 1e-5
    # Once to compare and once to warm up, and five times each.
    assert len(session.fed) == 7 and model.seen == [(2, 5)] * 7
    assert min(times) > 0 and max(times) < 60


def test_no_further_run_is_begun_after_the_time_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    runs: list[int] = []
    assert check._seconds(lambda: runs.append(1), 5, 3.0) == 1.0
    assert len(runs) == 1 + 3
    runs.clear()
    assert check._seconds(lambda: runs.append(1), 5, 0.0) == 1.0
    assert len(runs) == 1 + 1


def test_an_error_of_onnx_runtime_says_at_which_sizes() -> None:
    def fails(x: Any, ids: Any) -> Any:
        if x.shape[1] == 63:
            raise RuntimeError("no such size")
        return right(x, ids)

    with pytest.raises(CannotRun, match="ONNX Runtime fails at batch=2, seqlen=63: no such size"):
        tried(Sum(), sizes(), function=fails)


@pytest.mark.parametrize(
    ("results", "reason"),
    [
        (lambda x: {}, "model: expected tensors as its results, found none"),
        (lambda x: x / 0, "model: expected finite results, found others"),
        (lambda x: x.to(torch.bfloat16), "expected results of float64.*found torch.bfloat16"),
    ],
)
def test_results_that_cannot_be_compared_are_refused(results: Any, reason: str) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor, ids: Tensor) -> Any:
            return results(x)

    with pytest.raises(CannotRun, match=reason):
        Check(Model(), given(), sizes(), None)


def test_a_model_that_does_not_take_its_arguments_is_said_with_them() -> None:
    with pytest.raises(CannotRun) as raised:
        Check(Sum(most=2), given(), sizes(), None)
    said = str(raised.value)
    assert "float32 (2, 5, 4), int64 (2,), found " in said and "at most 2" in said


def test_the_tolerance_is_that_of_the_widest_rounding() -> None:
    class Model(nn.Module):
        def __init__(self, *dtypes: torch.dtype) -> None:
            super().__init__()
            self.dtypes = dtypes

        def forward(self, x: Tensor, ids: Tensor) -> Any:
            return tuple(x.to(dtype) for dtype in self.dtypes)

    def tolerance(*dtypes: torch.dtype, asked: float | None = None) -> float:
        return Check(Model(*dtypes), given(), sizes(), asked).tolerance

    assert tolerance(torch.float32) == 1e-5 and tolerance(torch.float16) == 2e-2
    assert tolerance(torch.float64, torch.float32) == 1e-5
    assert tolerance(torch.int64) == 0.0
    assert tolerance(torch.float32, asked=0.5) == 0.5
