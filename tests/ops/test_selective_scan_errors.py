"""An argument of the selective scan that does not fit is named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jetson_mamba.ops.selective_scan import (
    selective_scan_bwd,
)
from tests.ops.scan_setups import TENSORS, Variant, drawn, fwd

BAD = {
    "u no tensor": ({"u": [1.0]}, TypeError, "u: expected a tensor, found list"),
    "u integer": ({"u": torch.ones(2, 6, 35).int()}, TypeError, r"u: expected float16, .*int32"),
    "u 2-d": ({"u": torch.ones(6, 35)}, ValueError, r"u: expected 3 dim.*found \(6, 35\)"),
    "u empty": ({"u": torch.ones(2, 6, 0)}, ValueError, r"u: expected at least one step"),
    "delta short": ({"delta": torch.ones(2, 6, 34)}, ValueError, r"delta: .*35\), found .*34\)"),
    "delta complex": ({"delta": torch.ones(2, 6, 35) * 1j}, TypeError, "delta: .*complex64"),
    "delta elsewhere": (
        {"delta": torch.ones(2, 6, 35, device="meta")},
        ValueError,
        "delta: expected the device of u, cpu, found meta",
    ),
    "A other dim": ({"A": torch.ones(5, 5)}, ValueError, r"A: .*dim=6.*found \(5, 5\)"),
    "A without states": ({"A": torch.ones(6, 0)}, ValueError, r"A: .*found \(6, 0\)"),
    "B other dstate": (
        {"B": torch.ones(2, 2, 4, 35)},
        ValueError,
        r"B: expected shape .*dstate=5.* found \(2, 2, 4, 35\)",
    ),
    "B groups that do not divide dim": (
        {"B": torch.ones(2, 4, 5, 35)},
        ValueError,
        r"B: expected .*a divisor of dim=6",
    ),
    "B 3-d": ({"B": torch.ones(2, 5, 35)}, ValueError, r"B: expected .*found \(2, 5, 35\)"),
    "B of width for complex A": ({"B": torch.ones(2, 2, 5, 70)}, ValueError, "B: .*35.*70"),
    "constant B complex": ({"B": torch.ones(6, 5) * 1j}, TypeError, "B: .*complex64"),
    "C of other groups": ({"C": torch.ones(2, 3, 5, 35)}, ValueError, "C: .*2 groups.*found 3"),
    "D too long": ({"D": torch.ones(7)}, ValueError, r"D: expected .*\(6,\), found \(7,\)"),
    "z None-like": ({"z": False}, TypeError, "z: expected a tensor, found bool"),
    "z other shape": ({"z": torch.ones(2, 6, 3)}, ValueError, "z: .*found"),
    "delta_bias 2-d": ({"delta_bias": torch.ones(6, 1)}, ValueError, r"delta_bias: .*\(6, 1\)"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_named(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = drawn(Variant())._replace(**changes)
    with pytest.raises(error, match=message):
        fwd(arguments)


BAD_BACKWARD = {
    "dout short": ({"dout": torch.ones(2, 6, 34)}, ValueError, "dout: .*found"),
    "x of other states": ({"x": torch.ones(2, 6, 2, 9)}, ValueError, r"x: expected .*10\), found"),
    "x complex": ({"x": torch.ones(2, 6, 1, 10) * 1j}, TypeError, "x: expected torch.float32"),
    "out missing": ({"out": None}, ValueError, "out: expected .*found None"),
    "dz short": ({"dz": torch.ones(2, 6, 34)}, ValueError, "dz: .*found"),
    "out_z without z": ({"z": None}, ValueError, "recompute_out_z: expected False"),
}


@pytest.mark.parametrize(("changes", "error", "message"), BAD_BACKWARD.values(), ids=BAD_BACKWARD)
def test_bad_input_of_backward_is_named(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = drawn(Variant())
    out, x, _ = fwd(arguments)
    given = dict(arguments._asdict(), x=x, out=out, dz=None)
    given.update(changes)
    order = (*TENSORS, "dout", "x", "out", "dz", "delta_softplus")
    call: Any = selective_scan_bwd
    with pytest.raises(error, match=message):
        call(*(given[name] for name in order), True)
