"""The convolution by the Python package causal-conv1d that is installed.

Forward goes through its wrapper ``causal_conv1d_fn``, which has had three signatures. Backward
goes through ``causal_conv1d.cpp_functions`` where the release has it, else to the compiled
module that the package came with. What both cannot be asked is seen to by
:func:`.extension.around`.
"""

from __future__ import annotations

from importlib import import_module
from inspect import signature
from typing import Any, Callable

from torch import Tensor

from jetson_mamba.errors import Unavailable

from .contract import Case, Gradients, Implementation
from .extension import Calls, around, calls, compiled_module, refuse


def load(case: Case) -> Implementation:
    """The implementation by the package that is installed."""
    refuse(case)
    package = _package()
    compiled = calls(compiled_module())
    forward_names = tuple(signature(package.causal_conv1d_fn).parameters)
    update_names = tuple(signature(package.causal_conv1d_update).parameters)
    try:
        forward = _FORWARDS[forward_names](package.causal_conv1d_fn)
        update = _UPDATES[update_names](package.causal_conv1d_update)
    except KeyError:
        raise TypeError(
            "causal_conv1d: no known release has the signatures "
            f"causal_conv1d_fn{forward_names} and causal_conv1d_update{update_names}"
        ) from None
    return around(
        Calls(
            forward,
            _backward(compiled),
            update,
            takes_seq_idx="seq_idx" in forward_names and compiled.takes_seq_idx,
            takes_initial_states="initial_states" in forward_names
            and compiled.takes_initial_states,
            updates_ring="cache_seqlens" in update_names,
            takes_indices="conv_state_indices" in update_names,
        ),
        case,
    )


def _package() -> Any:
    """``causal_conv1d``, if it is one that computes by itself."""
    try:
        package = import_module("causal_conv1d")
    except ModuleNotFoundError as error:
        if error.name not in ("causal_conv1d", "causal_conv1d_cuda"):
            raise
        raise Unavailable(f"{error.name} is not installed") from None
    if package.causal_conv1d_fn.__module__ == f"{__package__}.op":
        # The stand-in of this project, which calls the op; it knows why the real one failed.
        reason = getattr(package, "__jetson_mamba_reason__", None)
        if reason is None:
            raise Unavailable("causal_conv1d is not installed")
        if "No module named 'causal_conv1d_cuda'" in reason:
            raise Unavailable("causal_conv1d_cuda is not installed")
        raise ImportError(reason.partition(": ")[2])
    return package


def _backward(compiled: Calls) -> Callable[..., Gradients]:
    try:
        function = import_module("causal_conv1d.cpp_functions").causal_conv1d_bwd_function
    except ModuleNotFoundError as error:
        if error.name != "causal_conv1d.cpp_functions":
            raise
        return compiled.backward

    def backward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dout: Tensor,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        dx: Tensor | None,
        return_dinitial_states: bool,
        silu: bool,
    ) -> Gradients:
        if bias is None:
            # The first releases that have cpp_functions fail there without a bias.
            return compiled.backward(
                x,
                weight,
                bias,
                dout,
                seq_idx,
                initial_states,
                dx,
                return_dinitial_states,
                silu,
            )
        gradients: Gradients = function(
            x,
            weight,
            bias,
            dout,
            seq_idx,
            initial_states,
            None,
            dx,
            return_dinitial_states,
            silu,
        )
        return gradients

    return backward


def _activation(silu: bool) -> str | None:
    return "silu" if silu else None


_FORWARDS: dict[tuple[str, ...], Callable[[Any], Callable[..., Tensor]]] = {
    ("x", "weight", "bias", "activation"): lambda f: (
        lambda x, weight, bias, seq_idx, initial_states, silu: f(x, weight, bias, _activation(silu))
    ),
    ("x", "weight", "bias", "seq_idx", "activation"): lambda f: (
        lambda x, weight, bias, seq_idx, initial_states, silu: f(
            x, weight, bias, seq_idx, _activation(silu)
        )
    ),
    (
        "x",
        "weight",
        "bias",
        "seq_idx",
        "initial_states",
        "return_final_states",
        "final_states_out",
        "activation",
    ): lambda f: (
        lambda x, weight, bias, seq_idx, initial_states, silu: f(
            x, weight, bias, seq_idx, initial_states, False, None, _activation(silu)
        )
    ),
}
# Without cache_seqlens x has no axis of time.
_UPDATES: dict[tuple[str, ...], Callable[[Any], Callable[..., Tensor]]] = {
    ("x", "conv_state", "weight", "bias", "activation"): lambda f: (
        lambda x, state, weight, bias, cache, rows, silu: f(
            x.squeeze(2), state, weight, bias, _activation(silu)
        ).unsqueeze(2)
    ),
    ("x", "conv_state", "weight", "bias", "activation", "cache_seqlens"): lambda f: (
        lambda x, state, weight, bias, cache, rows, silu: f(
            x, state, weight, bias, _activation(silu), cache
        )
    ),
    (
        "x",
        "conv_state",
        "weight",
        "bias",
        "activation",
        "cache_seqlens",
        "conv_state_indices",
    ): lambda f: (
        lambda x, state, weight, bias, cache, rows, silu: f(
            x, state, weight, bias, _activation(silu), cache, rows
        )
    ),
}
