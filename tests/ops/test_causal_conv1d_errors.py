"""An argument of the convolution that does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jetson_mamba.ops.causal_conv1d import (
    causal_conv1d_bwd,
    causal_conv1d_fn,
    causal_conv1d_update,
)

X, W = torch.zeros(2, 4, 6), torch.zeros(4, 3)
BAD_FORWARD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": [1.0]}, TypeError, "x: expected a tensor, found list"),
    ({"x": X[0]}, ValueError, r"x: expected shape \(batch, dim, seqlen\), found \(4, 6\)"),
    ({"x": X.long()}, TypeError, "x: expected float16.* found torch.int64"),
    ({"x": X.to(torch.complex64)}, TypeError, "x: expected float16.* found torch.complex64"),
    ({"weight": None}, TypeError, "weight: expected a tensor, found NoneType"),
    ({"weight": W[:3]}, ValueError, r"weight: .*\(4, 2 or more\), found \(3, 3\)"),
    ({"weight": W[:, :1]}, ValueError, r"weight: .*\(4, 2 or more\), found \(4, 1\)"),
    ({"weight": W[:, None]}, ValueError, r"weight: .*found \(4, 1, 3\)"),
    ({"weight": W.to("meta")}, ValueError, "weight: expected the device of x, cpu, found meta"),
    ({"bias": torch.zeros(3)}, ValueError, r"bias: .*\(4,\), found \(3,\)"),
    ({"bias": torch.zeros(4).int()}, TypeError, "bias: .*float32 or float64, found torch.int32"),
    ({"bias": torch.zeros(4, device="meta")}, ValueError, "bias: expected the device of x, cpu"),
    ({"seq_idx": torch.zeros(2, 6)}, TypeError, "seq_idx: .*int32, found torch.float32"),
    ({"seq_idx": torch.zeros(2, 5).int()}, ValueError, r"seq_idx: .*\(2, 6\), found \(2, 5\)"),
    ({"initial_states": torch.zeros(2, 4, 3)}, ValueError, r"initial_states: .*\(2, 4, 2\)"),
    ({"initial_states": torch.zeros(2, 4, 2).int()}, TypeError, "initial_states: .*int32"),
    (
        {"final_states_out": torch.zeros(2, 4, 3), "return_final_states": True},
        ValueError,
        "final_states_out: ",
    ),
    (
        {"seq_idx": torch.zeros(2, 6).int(), "return_final_states": True},
        ValueError,
        "neither with seq_idx",
    ),
    ({"activation": "relu"}, ValueError, "activation: expected None, 'silu' or 'swish'.*'relu'"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD_FORWARD)
def test_forward_names_the_argument_that_does_not_fit(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": W, **changed}
    with pytest.raises(error, match=message):
        causal_conv1d_fn(**arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"dout": X[..., :5]}, ValueError, r"dout: .*\(2, 4, 6\), found \(2, 4, 5\)"),
        ({"dout": X.half()}, TypeError, "dout: expected torch.float32"),
        ({"dx": X[:1]}, ValueError, "dx: expected shape"),
        ({"dx": X.double()}, TypeError, "dx: expected torch.float32, found torch.float64"),
        ({"dfinal_states": X}, ValueError, "dfinal_states: expected shape"),
        ({"weight": W[:, :1]}, ValueError, "weight: "),
        ({"activation": "tanh"}, ValueError, "activation: "),
    ],
)
def test_backward_names_the_argument_that_does_not_fit(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {"x": X, "weight": W, "bias": None, "dout": X, **changed}
    with pytest.raises(error, match=message):
        causal_conv1d_bwd(**arguments)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": X[0, 0]}, ValueError, "x: expected shape"),
        ({"conv_state": torch.zeros(2, 4, 1)}, ValueError, "conv_state: .*2 or more.*found"),
        ({"conv_state": torch.zeros(3, 4, 3)}, ValueError, r"conv_state: .*\(2, 4, 3\)"),
        ({"conv_state": torch.zeros(2, 4, 3).int()}, TypeError, "conv_state: .*int32"),
        ({"conv_state": None}, TypeError, "conv_state: expected a tensor"),
        ({"cache_seqlens": torch.zeros(2)}, TypeError, "cache_seqlens: .*int32"),
        ({"conv_state_indices": torch.zeros(3).int()}, ValueError, "conv_state_indices: "),
        ({"activation": True}, ValueError, "activation: "),
    ],
)
def test_update_names_the_argument_that_does_not_fit(
    changed: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments: dict[str, Any] = {
        "x": X[..., 0],
        "conv_state": torch.zeros(2, 4, 3),
        "weight": W,
        **changed,
    }
    with pytest.raises(error, match=message):
        causal_conv1d_update(**arguments)
