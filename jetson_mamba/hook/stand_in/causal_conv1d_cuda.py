"""The compiled extension of causal-conv1d, by ``jetson_mamba.ops.causal_conv1d``.

The functions take what those of 1.5.1 and later take, and return nothing: they write what they
are given. Those of earlier releases had other numbers of arguments, by which a call of theirs is
known, and returned their results; code for any release finds here what it calls.
"""

from __future__ import annotations

from typing import Any

import torch

from jetson_mamba import ops

__all__ = ["causal_conv1d_bwd", "causal_conv1d_fwd", "causal_conv1d_update"]

# The parameters after those that all releases begin with, by their number.
_FORWARD = {
    1: ("silu",),
    2: ("seq_idx", "silu"),
    4: ("seq_idx", "initial_states", "final_states_out", "silu"),
    5: ("seq_idx", "initial_states", "out", "final_states_out", "silu"),
}
_BACKWARD = {
    2: ("dx", "silu"),
    3: ("seq_idx", "dx", "silu"),
    6: (
        *("seq_idx", "initial_states", "dfinal_states", "dx", "return_dinitial_states"),
        "silu",
    ),
    8: (
        *("seq_idx", "initial_states", "dfinal_states", "dx", "dweight", "dbias"),
        *("dinitial_states", "silu"),
    ),
}
_UPDATE = {
    1: ("silu",),
    2: ("silu", "cache_seqlens"),
    3: ("silu", "cache_seqlens", "conv_state_indices"),
    4: ("out", "silu", "cache_seqlens", "conv_state_indices"),
}


@torch.no_grad()
def causal_conv1d_fwd(x: Any, weight: Any, bias: Any, *rest: Any) -> Any:
    """``(x, weight, bias, seq_idx, initial_states, out, final_states_out, silu)``."""
    given = _named("causal_conv1d_fwd", 3, _FORWARD, rest)
    out = given.pop("out", None)
    result = ops.causal_conv1d_fn(x, weight, bias, **given)
    return result if len(rest) < 5 else _write(out, result)


@torch.no_grad()
def causal_conv1d_bwd(x: Any, weight: Any, bias: Any, dout: Any, *rest: Any) -> Any:
    """``(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx, dweight, dbias,
    dinitial_states, silu)``; to dweight and dbias, which are float32, the gradients are added.
    """
    given = _named("causal_conv1d_bwd", 4, _BACKWARD, rest)
    if len(rest) < 8:
        gradients = ops.causal_conv1d_bwd(x, weight, bias, dout, **given)
        return list(gradients if len(rest) == 6 else gradients[:3])
    dweight, dbias, dinitial = (given.pop(n) for n in ("dweight", "dbias", "dinitial_states"))
    given["return_dinitial_states"] = dinitial is not None
    gradients = ops.causal_conv1d_bwd(x, weight, bias, dout, **given)
    dweight.add_(gradients[1])
    if dbias is not None and gradients[2] is not None:
        dbias.add_(gradients[2])
    return _write(dinitial, gradients[3])


@torch.no_grad()
def causal_conv1d_update(x: Any, conv_state: Any, weight: Any, bias: Any, *rest: Any) -> Any:
    """``(x, conv_state, weight, bias, out, silu, cache_seqlens, conv_state_indices)``."""
    given = _named("causal_conv1d_update", 4, _UPDATE, rest)
    out = given.pop("out", None)
    result = ops.causal_conv1d_update(x, conv_state, weight, bias, **given)
    return result if len(rest) < 4 else _write(out, result)


def _named(
    function: str, before: int, forms: dict[int, tuple[str, ...]], rest: tuple[Any, ...]
) -> dict[str, Any]:
    """The arguments by name, with upstream's flag as the op spells it."""
    if len(rest) not in forms:
        expected = ", ".join(str(before + each) for each in forms)
        raise TypeError(
            f"{function}(): incompatible function arguments: expected {expected}, found "
            f"{before + len(rest)}"
        )
    given = dict(zip(forms[len(rest)], rest))
    given["activation"] = "silu" if given.pop("silu") else None
    return given


def _write(out: Any, result: Any) -> None:
    if out is not None:
        out.copy_(result)
