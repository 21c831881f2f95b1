"""A result is laid out alike whichever way a call goes: a caller may view it in another shape."""

from __future__ import annotations

import warnings
from typing import Any, Callable

import pytest
import torch
from torch import Tensor

from jetson_mamba import ops

LENGTH = 11  # of no whole number of chunks or blocks


def _convolution(x: Tensor) -> Any:
    return ops.causal_conv1d_fn(x, torch.ones(x.shape[1], 3), activation="silu")


def _scan(x: Tensor) -> Any:
    dim = x.shape[1]
    return ops.selective_scan_fn(
        x, x.exp(), -torch.ones(dim, 2), torch.ones(dim, 2), torch.ones(dim, 2), z=x
    )


def _ssd(x: Tensor) -> Any:
    heads = x.unflatten(2, (4, -1))
    weights = torch.ones(*x.shape[:2], 1, 3)
    return ops.mamba_chunk_scan_combined(
        heads, heads[..., 0].exp(), -torch.ones(4), weights, weights, 4, D=torch.ones(4)
    )


CASES: list[tuple[str, Callable[[Tensor], Tensor], Tensor]] = [
    ("convolution", _convolution, torch.randn(2, 8, LENGTH)),
    ("convolution, channels last", _convolution, torch.randn(2, LENGTH, 8).transpose(1, 2)),
    ("scan", _scan, torch.randn(2, 8, LENGTH)),
    ("ssd", _ssd, torch.randn(2, LENGTH, 8)),
]


@pytest.mark.parametrize(("op", "x"), [each[1:] for each in CASES], ids=[each[0] for each in CASES])
def test_a_composed_result_has_the_strides_of_that_of_a_kernel(
    op: Callable[[Tensor], Tensor], x: Tensor
) -> None:
    with torch.no_grad():
        expected = op(x).stride()
        found: list[tuple[int, ...]] = []

        def observed(x: Tensor) -> Tensor:
            out = op(x)
            found.append(out.stride())
            return out

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is deprecated, which jvp is made with
            torch.jit.trace(observed, x, check_trace=False)
            torch.func.jvp(observed, (x,), (x,))
            # Those of one entry, of a batch that is the first axis of all.
            torch.func.vmap(observed)(x[None])
    assert found == [expected] * 3
