"""The package's functions under the name of the module that some code imports them from.

Upstream's reference functions are here too, computed by the op as everything else.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from jetson_mamba.ops import causal_conv1d_fn, causal_conv1d_update

__all__ = [
    "CausalConv1dFn",
    "causal_conv1d_fn",
    "causal_conv1d_ref",
    "causal_conv1d_update",
    "causal_conv1d_update_ref",
]


class CausalConv1dFn:
    """Upstream's autograd function, for code that calls its ``apply``."""

    @staticmethod
    def apply(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        seq_idx: Tensor | None = None,
        initial_states: Tensor | None = None,
        return_final_states: bool = False,
        final_states_out: Tensor | None = None,
        activation: str | None = None,
    ) -> Any:
        """:func:`causal_conv1d_fn`, whose gradients it has."""
        return causal_conv1d_fn(
            x,
            weight,
            bias,
            seq_idx,
            initial_states,
            return_final_states,
            final_states_out,
            activation,
        )


def causal_conv1d_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    return_final_states: bool = False,
    final_states_out: Tensor | None = None,
    activation: str | None = None,
) -> Any:
    """:func:`causal_conv1d_fn` without ``seq_idx``: upstream's reference takes none."""
    return causal_conv1d_fn(
        x, weight, bias, None, initial_states, return_final_states, final_states_out, activation
    )


def causal_conv1d_update_ref(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
    cache_seqlens: Tensor | None = None,
) -> Tensor:
    """:func:`causal_conv1d_update` without ``conv_state_indices``."""
    return causal_conv1d_update(x, conv_state, weight, bias, activation, cache_seqlens)
