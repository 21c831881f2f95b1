"""A node of a recurrence is like what its operator gives, in dtypes as in shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from jetson_mamba import ops  # noqa: F401 (defines the operators)
from jetson_mamba.errors import CannotRun
from jetson_mamba.export import capture
from jetson_mamba.ops.ssd.library import ScanArguments

pytest.importorskip("onnxscript")
pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch.onnx, "ops", None), "symbolic_multi_out"),
    reason="this torch has no nodes of one's own",
)
BATCH, DIM, SEQLEN, DSTATE, HEADS = 2, 6, 9, 5, 3


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape).to(dtype)


def convolution(dtype: torch.dtype, initial: bool, final: bool) -> tuple[Any, ...]:
    states = drawn(BATCH, DIM, 3, dtype=dtype) if initial else None
    x, weight = drawn(BATCH, DIM, SEQLEN, dtype=dtype), drawn(DIM, 4, dtype=dtype)
    return (x, weight, drawn(DIM, dtype=dtype), None, states, final, True)


def scan(dtype: torch.dtype, gated: bool) -> tuple[Any, ...]:
    rows, matrix = (BATCH, DIM, SEQLEN), (BATCH, 2, DSTATE, SEQLEN)
    return (
        *(drawn(*rows, dtype=dtype), drawn(*rows, dtype=dtype).abs(), -torch.rand(DIM, DSTATE)),
        *(drawn(*matrix, dtype=dtype), drawn(*matrix, dtype=dtype), drawn(DIM)),
        *(drawn(*rows, dtype=dtype) if gated else None, drawn(DIM), True),
    )


def ssd(dtype: torch.dtype) -> tuple[Any, ...]:
    matrix = (BATCH, SEQLEN, 1, DSTATE)
    given: dict[str, Any] = {
        "x": drawn(BATCH, SEQLEN, HEADS, 4, dtype=dtype),
        "dt": drawn(BATCH, SEQLEN, HEADS, dtype=dtype).abs(),
        "A": -torch.rand(HEADS),
        "B": drawn(*matrix, dtype=dtype),
        "C": drawn(*matrix, dtype=dtype),
        "D": drawn(HEADS),
        "chunk_size": 16,
        "dt_softplus": True,
        "dt_least": 0.0,
        "dt_most": float("inf"),
    }
    fields = ScanArguments._fields
    return tuple(given.get(name) for name in fields)


OPERATORS = torch.ops.jetson_mamba
CASES = [
    *(
        (OPERATORS.causal_conv1d, convolution(dtype, initial, final))
        for dtype in (torch.float32, torch.bfloat16)
        for initial in (False, True)
        for final in (False, True)
    ),
    (OPERATORS.selective_scan_output, scan(torch.float32, True)),
    *(
        (OPERATORS.selective_scan_rows, (*scan(dtype, gated), 3))
        for dtype in (torch.float32, torch.bfloat16)
        for gated in (False, True)
    ),
    (OPERATORS.ssd_scan, ssd(torch.float32)),
    (OPERATORS.ssd_scan, ssd(torch.bfloat16)),
]


def likeness(results: Any) -> list[tuple[torch.dtype, torch.Size]]:
    several = [results] if isinstance(results, Tensor) else results
    return [(each.dtype, each.shape) for each in several]


@pytest.mark.parametrize(("operator", "arguments"), CASES)
def test_its_results_are_like_the_operators(operator: Any, arguments: tuple[Any, ...]) -> None:
    found = capture._table()[operator.default](*arguments)
    assert likeness(found) == likeness(operator(*arguments))


def test_complex_numbers_are_refused() -> None:
    arguments = list(scan(torch.float32, False))
    arguments[2] = arguments[2].to(torch.complex64)
    with pytest.raises(CannotRun, match="A: expected real numbers, found complex ones"):
        capture._scan_output(*arguments)
