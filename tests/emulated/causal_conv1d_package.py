"""The Python package causal-conv1d reduced to its functions, with each release's signatures.

The real package is tested too, where it can be had; this one makes the signatures available
everywhere.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any, Callable

import torch
from torch import Tensor

from . import version

Tensors = Any


def fill(module: ModuleType, release: str) -> None:
    """Give ``module`` the functions of a release."""
    compiled = import_module("causal_conv1d_cuda")
    numbers = version(release)
    module.__dict__["causal_conv1d_fn"] = _function(compiled, numbers)
    module.__dict__["causal_conv1d_update"] = _update(compiled, numbers)


def _function(compiled: Any, numbers: tuple[int, ...]) -> Callable[..., Any]:
    if numbers < (1, 1):

        def first(
            x: Tensor, weight: Tensor, bias: Tensors = None, activation: str | None = None
        ) -> Any:
            return compiled.causal_conv1d_fwd(x, weight, bias, _is_silu(activation))

        return first
    if numbers < (1, 2):

        def second(
            x: Tensor,
            weight: Tensor,
            bias: Tensors = None,
            seq_idx: Tensors = None,
            activation: str | None = None,
        ) -> Any:
            return compiled.causal_conv1d_fwd(x, weight, bias, seq_idx, _is_silu(activation))

        return second

    def third(
        x: Tensor,
        weight: Tensor,
        bias: Tensors = None,
        seq_idx: Tensors = None,
        initial_states: Tensors = None,
        return_final_states: bool = False,
        final_states_out: Tensors = None,
        activation: str | None = None,
    ) -> Any:
        assert seq_idx is None or not return_final_states
        assert numbers >= (1, 7) or seq_idx is None or initial_states is None
        assert not return_final_states or x.stride(1) == 1
        if not return_final_states:
            final_states_out = None
        elif final_states_out is None:
            shape = (x.shape[0], weight.shape[1] - 1, x.shape[1])
            final_states_out = x.new_empty(shape).transpose(1, 2)
        if numbers >= (1, 5, 1):
            forward = import_module("causal_conv1d.cpp_functions").causal_conv1d_fwd_function
        else:
            forward = compiled.causal_conv1d_fwd
        out = forward(
            x, weight, bias, seq_idx, initial_states, final_states_out, _is_silu(activation)
        )
        return (out, final_states_out) if return_final_states else out

    return third


def _update(compiled: Any, numbers: tuple[int, ...]) -> Callable[..., Any]:
    def call(x: Tensor, *arguments: Any) -> Any:
        steps = x[..., None] if x.dim() == 2 and numbers >= (1, 4) else x
        if numbers >= (1, 5, 1):
            out = torch.empty_like(steps)
            before, after = arguments[:3], arguments[3:]
            compiled.causal_conv1d_update(steps, *before, out, *after)
        else:
            out = compiled.causal_conv1d_update(steps, *arguments)
        return out.reshape(x.shape)

    if numbers < (1, 4):

        def first(
            x: Tensor,
            conv_state: Tensor,
            weight: Tensor,
            bias: Tensors = None,
            activation: str | None = None,
        ) -> Any:
            return call(x, conv_state, weight, bias, _is_silu(activation))

        return first
    if numbers < (1, 5):

        def second(
            x: Tensor,
            conv_state: Tensor,
            weight: Tensor,
            bias: Tensors = None,
            activation: str | None = None,
            cache_seqlens: Tensors = None,
        ) -> Any:
            return call(x, conv_state, weight, bias, _is_silu(activation), cache_seqlens)

        return second

    def third(
        x: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensors = None,
        activation: str | None = None,
        cache_seqlens: Tensors = None,
        conv_state_indices: Tensors = None,
    ) -> Any:
        silu = _is_silu(activation)
        return call(x, conv_state, weight, bias, silu, cache_seqlens, conv_state_indices)

    return third


def _is_silu(activation: str | None) -> bool:
    if activation not in (None, "silu", "swish"):
        raise NotImplementedError("activation must be None, silu, or swish")
    return activation is not None


def fill_cpp_functions(module: ModuleType) -> None:
    """Give ``module`` the functions of ``causal_conv1d.cpp_functions``."""
    compiled = import_module("causal_conv1d_cuda")

    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensors,
        seq_idx: Tensors,
        initial_states: Tensors,
        final_states_out: Tensors,
        silu_activation: bool,
    ) -> Tensor:
        out = torch.empty_like(x)
        compiled.causal_conv1d_fwd(
            x, weight, bias, seq_idx, initial_states, out, final_states_out, silu_activation
        )
        return out

    def backward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        dout: Tensor,
        seq_idx: Tensors,
        initial_states: Tensors,
        dfinal_states: Tensors,
        dx: Tensors,
        return_dinitial_states: bool,
        silu_activation: bool,
    ) -> tuple[Tensors, ...]:
        dx = torch.empty_like(x) if dx is None else dx
        dweight = torch.zeros_like(weight, dtype=torch.float32)
        # The first releases with this function fail here, too, for a bias of None.
        dbias = torch.zeros_like(bias, dtype=torch.float32)
        dinitial = None
        if return_dinitial_states:
            shape = (x.shape[0], weight.shape[1] - 1, x.shape[1])
            dinitial = x.new_empty(shape).transpose(1, 2)
        compiled.causal_conv1d_bwd(
            x,
            weight,
            bias,
            dout,
            seq_idx,
            initial_states,
            dfinal_states,
            dx,
            dweight,
            dbias,
            dinitial,
            silu_activation,
        )
        return dx, dweight.type_as(weight), dbias.type_as(bias), dinitial

    module.__dict__["causal_conv1d_fwd_function"] = forward
    module.__dict__["causal_conv1d_bwd_function"] = backward
