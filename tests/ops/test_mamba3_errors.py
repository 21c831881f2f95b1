"""Whatever argument of Mamba-3's ops does not fit is named, each of them."""

from __future__ import annotations

from typing import Any, Iterator

import pytest
import torch
from torch import Tensor

from jetson_mamba.ops import mamba3

B, L, R, G, H, P, N, A = 2, 5, 3, 2, 4, 6, 8, 3
op: Any = mamba3


def zeros(*shape: int) -> Tensor:
    return torch.full(shape, 0.1)


SISO = {
    **{"Q": zeros(B, L, G, N), "K": zeros(B, L, G, N), "V": zeros(B, L, H, P)},
    **{name: zeros(B, H, L) for name in ("ADT", "DT", "Trap")},
    **{"Q_bias": zeros(H, N), "K_bias": zeros(H, N), "Angles": zeros(B, L, H, A)},
    **{"D": zeros(H), "Z": zeros(B, L, H, P)},
    "Input_States": (zeros(B, H, A), zeros(B, H, P, N), zeros(B, H, N), zeros(B, H, P)),
}
MIMO = {
    **{name: each for name, each in SISO.items() if name != "Input_States"},
    **{"Q": zeros(B, L, R, G, N), "K": zeros(B, L, R, G, N), "Angles": zeros(B, L, H, 2)},
    **{"Q_bias": zeros(H, R, N), "K_bias": zeros(H, R, N)},
    **{name: zeros(H, R, P) for name in ("MIMO_V", "MIMO_Z", "MIMO_Out")},
    **{"chunk_size": 16, "rotary_dim_divisor": 4, "dtype": torch.float32},
    "outproj_norm_weight": zeros(H * P),
    "fuse_pregate_headwise_rms_norm": True,
}
STEP_OF_SISO = {
    **{"Q": zeros(B, G, N), "K": zeros(B, G, N), "V": zeros(B, H, P)},
    **{name: zeros(B, H) for name in ("ADT", "DT", "Trap")},
    **{"Q_bias": zeros(H, N), "K_bias": zeros(H, N), "Angles": zeros(B, H, A)},
    **{"D": zeros(H), "Z": zeros(B, H, P), "Input_States": SISO["Input_States"]},
}
STEP = {
    **{"state": zeros(B, H, P, N), "state_out": zeros(B, H, P, N), "D": zeros(H)},
    **{name: zeros(B, R, H, N) for name in ("Bstate", "B", "C")},
    **{name: zeros(B, H, P) for name in ("Xstate", "x", "z", "out")},
    **{name: zeros(B, H) for name in ("A", "dt", "trap")},
    **{name: zeros(R, H, P) for name in ("xproj", "outproj", "zproj")},
}
ROTATION = {
    **{"q": zeros(B, R, H, N), "k": zeros(B, R, H, N), "dt": zeros(B, H)},
    **{"angle_state": zeros(B, H, A), "angle_proj": zeros(B, H, A)},
    **{"bias_q": zeros(R, H, N), "bias_k": zeros(R, H, N)},
}
OPS: dict[str, dict[str, Any]] = {
    "mamba3_siso_combined": SISO,
    "mamba3_mimo": MIMO,
    "mamba3_siso_step": STEP_OF_SISO,
    "mamba3_step_fn": STEP,
    "apply_rotary_qk_inference_fwd": ROTATION,
}
PARTS = ("angle", "state", "K", "V")
# What an argument tells others the sizes of: these are said not to fit it.
FIRST = {
    "mamba3_siso_combined": ("Q", "V", "Q_bias", "Angles"),
    "mamba3_mimo": ("Q", "V", "Q_bias", "Angles"),
    "mamba3_siso_step": ("Q", "V", "Angles"),
    "mamba3_step_fn": ("state", "Bstate"),
    "apply_rotary_qk_inference_fwd": ("q", "angle_state"),
}


def arguments(name: str) -> Iterator[tuple[str, Tensor, dict[str, Any]]]:
    """Each tensor by its name, with where it is among the arguments."""
    for argument, value in OPS[name].items():
        if isinstance(value, Tensor):
            yield argument, value, {}
        elif isinstance(value, tuple):
            for place, each in enumerate(value):
                yield f"{argument}: {PARTS[place]}", each, {"place": place}


def changed(name: str, argument: str, value: Any, at: dict[str, Any]) -> dict[str, Any]:
    given = dict(OPS[name])
    key = argument.split(":", maxsplit=1)[0]
    if at:
        several = list(given[key])
        several[at["place"]] = value
        given[key] = tuple(several)
    else:
        given[key] = value
    return given


CASES = [
    pytest.param(name, *each, id=f"{name}-{each[0]}") for name in OPS for each in arguments(name)
]


@pytest.mark.parametrize("name", OPS)
def test_what_fits_is_taken(name: str) -> None:
    getattr(op, name)(**OPS[name])


@pytest.mark.parametrize(("name", "argument", "value", "at"), CASES)
def test_an_argument_of_other_sizes_is_named(
    name: str, argument: str, value: Tensor, at: dict[str, Any]
) -> None:
    def said(other: Any) -> str:
        with pytest.raises((TypeError, ValueError)) as raised:
            getattr(op, name)(**changed(name, argument, other, at))
        return str(raised.value)

    # Of another kind, or of another number of axes, it is itself what does not fit.
    last = argument.rsplit(": ", maxsplit=1)[-1]
    assert said("words").startswith((f"{argument}: expected", f"{last}: ", f"{last} state: "))
    assert said(value.long()).startswith((f"{argument}: expected", f"{last}: ", f"{last} state: "))
    # Which may have any number of axes.
    if argument != "outproj_norm_weight":
        assert said(value[None]).startswith(f"{argument}: expected"), said(value[None])
    known = {each for each, *_ in arguments(name)}
    for axis in range(value.dim()):
        more = torch.cat([value, value.narrow(axis, 0, 1)], axis)
        found = said(more)
        named = found.partition(": expected")[0]
        assert named in known, found
        if argument not in FIRST[name]:
            assert named == argument, found


OF_GATE = "fuse_pregate_headwise_rms_norm: expected Z, MIMO_Z"
APART: list[tuple[str, dict[str, Any], str]] = [
    *(("mamba3_mimo", {name: None}, OF_GATE) for name in ("Z", "MIMO_Z", "MIMO_Out")),
    ("mamba3_mimo", {"rotary_dim_divisor": 2}, "Angles: expected dstate=8 over .*=2, found 2"),
    ("mamba3_siso_step", {"Input_States": ()}, "Input_States: expected four states, found 0"),
    ("mamba3_step_fn", {"zproj": None}, "zproj: expected a tensor with z, found None"),
    ("mamba3_siso_step", {"Q": zeros(B, G, 7)}, "Q: expected an even last axis, found 7"),
    ("mamba3_siso_step", {"Q": zeros(B, 3, N)}, "Q: expected heads that divide those of V, 4"),
    ("mamba3_siso_step", {"Angles": zeros(B, H, 5)}, "Angles: expected at most 4, found 5"),
    ("apply_rotary_qk_inference_fwd", {"angle_state": zeros(B, H, 5)}, "angle_state: .*most 4"),
]


@pytest.mark.parametrize(("name", "change", "message"), APART)
def test_what_does_not_go_together_is_named(
    name: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(op, name)(**{**OPS[name], **change})
