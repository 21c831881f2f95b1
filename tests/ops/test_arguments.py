"""What is said of an argument that does not fit: its name, what was expected, what was found."""

from __future__ import annotations

from typing import Any, Callable

import pytest
import torch

from jetson_mamba.dispatch import arguments
from jetson_mamba.dispatch.arguments import ANY, COMPLEX, FLOATING, INTEGER

DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
)
META = torch.device("meta")


@pytest.mark.parametrize(
    ("accepted", "count", "words"),
    [
        (FLOATING, 4, "float16, bfloat16, float32 or float64"),
        (COMPLEX, 2, "complex64 or complex128"),
        (ANY, 6, "a floating or a complex dtype"),
        (INTEGER, 5, "an integer dtype"),
        ((torch.int8,), 1, "torch.int8"),
    ],
)
def test_a_dtype_is_one_of_those_that_are_named(accepted: Any, count: int, words: str) -> None:
    refused = []
    for dtype in DTYPES:
        try:
            arguments.check_dtype("x", torch.empty(1, dtype=dtype), accepted)
        except TypeError as error:
            refused.append(dtype)
            assert str(error) == f"x: expected {words}, found {dtype}"
    assert len(refused) == len(DTYPES) - count
    with pytest.raises(TypeError, match=r"^x: expected a tensor, found list$"):
        arguments.check_dtype("x", [1.0], accepted)
    with pytest.raises(TypeError, match=r"^x: expected a mask, found torch\.bool$"):
        arguments.check_dtype("x", torch.ones(1).bool(), accepted, "a mask")


def test_tensors_are_of_one_device_and_some_may_be_none() -> None:
    one, elsewhere = torch.ones(1), torch.ones(1, device=META)
    indices = torch.ones(1).int()
    arguments.check_tensors({"x": one, "z": None, "i": indices}, ("z",), {"i": INTEGER})
    with pytest.raises(TypeError, match=r"^y: expected a tensor, found NoneType$"):
        arguments.check_tensors({"x": one, "y": None}, ("z",))
    with pytest.raises(TypeError, match=r"^i: expected float16"):
        arguments.check_tensors({"x": one, "i": indices})
    with pytest.raises(ValueError, match=r"^y: expected the device of x, cpu, found meta$"):
        arguments.check_tensors({"z": None, "x": one, "y": elsewhere}, ("z",))


@pytest.mark.parametrize(
    ("check", "message"),
    [
        (
            lambda: arguments.check_all(
                "B", torch.ones(2, 3), (2, 4), "(batch, n)", FLOATING, torch.device("cpu"), "x"
            ),
            "B: expected shape (batch, n) = (2, 4), found (2, 3)",
        ),
        (
            lambda: arguments.dims("x", torch.ones(2, 3), ("batch", "seqlen", "dim")),
            "x: expected shape (batch, seqlen, dim), found (2, 3)",
        ),
        (
            lambda: arguments.check_shape("D", torch.ones(3), {"nheads": 2}),
            "D: expected shape (nheads=2), found (3,)",
        ),
        (
            lambda: arguments.check_alike("z", torch.ones(3), (2,), "the shape of x"),
            "z: expected the shape of x, (2,), found (3,)",
        ),
        (
            lambda: arguments.check_groups(0, 8, "ngroups:"),
            "ngroups: expected a divisor of nheads=8, found 0",
        ),
        (
            lambda: arguments.check_groups(3, 8, "ngroups:"),
            "ngroups: expected a divisor of nheads=8, found 3",
        ),
        (lambda: arguments.check_steps("u", 0), "u: expected a seqlen of at least 1, found 0"),
        (
            lambda: arguments.check_boundaries(torch.zeros(1).int(), "x", 1, "cu_seqlens"),
            "cu_seqlens: expected shape (sequences + 1,), found (1,)",
        ),
        (
            lambda: arguments.check_boundaries(torch.zeros(2).int(), "x", 2, "cu_seqlens"),
            "x: expected batch 1 with cu_seqlens, found 2",
        ),
        *(
            (
                lambda ends=ends: arguments.boundaries(torch.tensor(ends), 5),
                "cu_seqlens: expected boundaries that do not fall, from 0 to seqlen=5, "
                f"found {ends}",
            )
            for ends in ([-1, 5], [0, 6], [0, 3, 2], [5, 0])
        ),
    ],
)
def test_what_does_not_fit_is_told(check: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        check()
    assert str(caught.value) == message


def test_what_fits_passes() -> None:
    x, cpu = torch.ones(2, 3), torch.device("cpu")
    arguments.check_all("x", x, (2, 3), "(batch, n)", FLOATING, cpu, "x")
    assert arguments.dims("x", x, ("batch", "dim")) == (2, 3)
    for given in (x, None):
        arguments.check_shape("x", given, {"batch": 2, "dim": 3})
        arguments.check_alike("x", given, (2, 3), "the shape of y")
    for ngroups in (1, 2, 8):
        arguments.check_groups(ngroups, 8, "ngroups:")
    arguments.check_steps("u", 1)
    arguments.check_boundaries(torch.zeros(2).long(), "x", 1, "cu_seqlens")
    for ends in ([0, 5], [0, 0], [2, 2, 4], [5, 5]):
        assert arguments.boundaries(torch.tensor(ends), 5) == tuple(ends)
