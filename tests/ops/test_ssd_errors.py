"""What the ssd op says of arguments that do not fit together."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch

from tests.ops.test_ssd import leaves, mixer, mixer_case, scan, scan_tensors


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


SCAN_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"x": torch.zeros(2, 8, 4)}, ValueError, r"x: expected shape \(batch, .*found \(2, 8, 4\)"),
    ({"x": torch.zeros(2, 8, 4, 3, dtype=torch.int32)}, TypeError, "x: .*int32"),
    ({"x": torch.zeros(2, 8, 4, 3, dtype=torch.complex64)}, TypeError, "x: .*complex64"),
    ({"x": None}, TypeError, "x: expected a tensor, found NoneType"),
    ({"x": torch.zeros(2, 0, 4, 3)}, ValueError, "x: expected a seqlen of at least 1, found 0"),
    ({"dt": torch.zeros(2, 8, 5)}, ValueError, r"dt: .*nheads=4\), found \(2, 8, 5\)"),
    ({"A": torch.zeros(4, 5)}, ValueError, r"A: .*\(nheads=4\), found \(4, 5\)"),
    ({"A": -1.0}, TypeError, "A: expected a tensor, found float"),
    ({"B": torch.zeros(2, 8, 3, 5)}, ValueError, "B: .*divisor of nheads=4, found 3"),
    ({"C": torch.zeros(2, 8, 2, 6)}, ValueError, r"C: .*dstate=5\), found \(2, 8, 2, 6\)"),
    ({"C": torch.zeros(2, 8, 2, 5, device="meta")}, ValueError, "C: .*device of x, cpu.*meta"),
    ({"D": torch.zeros(3)}, ValueError, r"D: .*nheads=4.*found \(3,\)"),
    ({"z": torch.zeros(2, 8, 4, 4)}, ValueError, r"z: .*headdim=3\), found \(2, 8, 4, 4\)"),
    ({"dt_bias": torch.zeros(3)}, ValueError, r"dt_bias: .*found \(3,\)"),
    ({"initial_states": torch.zeros(2, 4, 5, 3)}, ValueError, "initial_states: .*dstate=5"),
    ({"seq_idx": torch.zeros(2, 9, dtype=torch.int32)}, ValueError, "seq_idx: .*seqlen=8"),
    ({"seq_idx": torch.zeros(2, 8)}, TypeError, "seq_idx: .*integer dtype, found torch.float32"),
    ({"chunk_size": 0}, ValueError, "chunk_size: expected at least 1, found 0"),
    ({"chunk_size": 2.0}, TypeError, "chunk_size: expected an int, found float"),
    ({"dt_limit": (1.0, 0.0)}, ValueError, r"dt_limit: .*found \(1.0, 0.0\)"),
    ({"return_varlen_states": True}, ValueError, "cu_seqlens: .*found None"),
    (
        {"return_varlen_states": True, "cu_seqlens": torch.tensor([0, 8])},
        ValueError,
        "x: expected batch 1 .*found 2",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), SCAN_ERRORS)
def test_scan_names_the_argument_that_does_not_fit(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {**leaves(scan_tensors(8), torch.float32), "chunk_size": 64, **change}
    with pytest.raises(error, match=message):
        scan(**arguments)


@pytest.mark.parametrize(
    ("cu_seqlens", "error", "message"),
    [
        (torch.tensor([0, 9]), ValueError, r"cu_seqlens: .*seqlen=8, found \[0, 9\]"),
        (torch.tensor([0, 5, 3]), ValueError, "cu_seqlens: .*do not fall"),
        (torch.tensor([0]), ValueError, r"cu_seqlens: .*found \(1,\)"),
        (torch.tensor([0.0, 8.0]), TypeError, "cu_seqlens: .*integer dtype"),
        ([0, 8], TypeError, "cu_seqlens: expected a tensor, found list"),
    ],
)
def test_scan_names_what_is_wrong_with_cu_seqlens(
    cu_seqlens: Any, error: type[Exception], message: str
) -> None:
    tensors = {name: t[:1] if t.dim() > 2 else t for name, t in scan_tensors(8).items()}
    with pytest.raises(error, match=message):
        scan(**tensors, chunk_size=64, cu_seqlens=cu_seqlens, return_varlen_states=True)


MIXER_ERRORS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"zxbcdt": torch.zeros(2, 8, 37)}, ValueError, "zxbcdt: .*= 38 columns.*found 37"),
    ({"zxbcdt": torch.zeros(2, 8, 39)}, ValueError, "zxbcdt: .*even number more, found 39"),
    ({"zxbcdt": torch.zeros(8, 38)}, ValueError, r"zxbcdt: expected shape .*found \(8, 38\)"),
    ({"conv1d_weight": torch.zeros(21, 4)}, ValueError, "conv1d_weight: .*found 21"),
    ({"conv1d_weight": torch.zeros(22)}, ValueError, r"conv1d_weight: .*found \(22,\)"),
    ({"conv1d_bias": torch.zeros(21)}, ValueError, r"conv1d_bias: .*22\), found \(21,\)"),
    ({"A": torch.zeros(5)}, ValueError, r"A: .*nheads=4\), found \(5,\)"),
    ({"D": None}, TypeError, "D: expected a tensor, found NoneType"),
    ({"D": torch.zeros(4, 3, 1)}, ValueError, r"D: .*found \(4, 3, 1\)"),
    ({"headdim": None}, ValueError, "headdim: .*found None"),
    ({"ngroups": 3}, ValueError, "ngroups: .*divisor of nheads=4, found 3"),
    ({"activation": "relu"}, ValueError, "activation: .*found 'relu'"),
    ({"rmsnorm_weight": torch.zeros(11)}, ValueError, r"rmsnorm_weight: .*12\), found \(11,\)"),
    ({"outproj_weight": torch.zeros(7, 11)}, ValueError, "outproj_weight: .*12.*found 11"),
    ({"outproj_bias": torch.zeros(8)}, ValueError, r"outproj_bias: .*7\), found \(8,\)"),
    ({"outproj_weight": None}, ValueError, "outproj_bias: expected None"),
    (
        {"outproj_weight": torch.zeros(7, 12, dtype=torch.float64)},
        TypeError,
        "outproj_weight: expected torch.float32.*found torch.float64",
    ),
]


@pytest.mark.parametrize(("change", "error", "message"), MIXER_ERRORS)
def test_mixer_names_the_argument_that_does_not_fit(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    tensors, options = mixer_case("no activation", 8)
    given = {**leaves(tensors, torch.float32), **options, "chunk_size": 64, **change}
    with pytest.raises(error, match=message):
        mixer(**given)


@pytest.mark.parametrize(
    ("function", "arguments", "errors"),
    [
        (scan, lambda: leaves(scan_tensors(8), torch.float32), SCAN_ERRORS),
        (
            mixer,
            lambda: {
                **leaves(mixer_case("no activation", 8)[0], torch.float32),
                **mixer_case("no activation", 8)[1],
            },
            MIXER_ERRORS,
        ),
    ],
)
def test_errors_are_the_same_without_gradients(
    function: Callable[..., Any],
    arguments: Callable[[], dict[str, Any]],
    errors: list[tuple[dict[str, Any], type[Exception], str]],
) -> None:
    for change, error, message in errors:
        with torch.no_grad(), pytest.raises(error, match=message):
            function(**{**arguments(), "chunk_size": 64, **change})
