"""A token of transformers' Mamba models by the kernels that take a token of a block.

Their mixers are blocks of mamba_ssm with other words: a token of one is some fifteen kernels with
the functions of mamba_ssm that it calls, and four with these. The first of a kind is held to the
mixer's own, as for a block; what has no two states in its cache, a mask, or anything else that
``layers.py`` leaves to a block, is left to the mixer.
"""

from __future__ import annotations

import copy
from functools import partial, wraps
from inspect import signature, unwrap
from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch.operators import is_compiling

from .layers import FewKernels
from .layers_cuda import OfMamba, OfMamba2

Forward = Callable[..., Any]

# By the classes that have them, the functions that a token of a mixer calls.
MIXERS = {
    "MambaMixer": ("causal_conv1d_update", "mamba_selective_state_update"),
    "Mamba2Mixer": ("causal_conv1d_update", "mamba2_selective_state_update"),
}
PARAMETERS = ["self", "hidden_states", "cache_params", "attention_mask"]


def join(module: Any) -> None:
    """Let the mixers of a module of transformers take their tokens by few kernels."""
    for name, calls in MIXERS.items():
        mixer = vars(module).get(name)
        forward = vars(mixer).get("forward") if isinstance(mixer, type) else None
        if forward is not None and [*signature(forward).parameters][:4] == PARAMETERS:
            mixer.forward = by_few_kernels(forward, calls)


def by_few_kernels(forward: Forward, calls: tuple[str, ...]) -> Forward:
    """A mixer's ``forward``, a token with its states by few kernels where they serve it.

    ``calls`` are the functions that a token calls.
    """
    few = FewKernels(getattr(unwrap(forward), "__globals__", {}), calls, _options)

    @wraps(forward)
    def call(
        self: Any,
        hidden_states: Tensor,
        cache_params: Any = None,
        attention_mask: Any = None,
        **more: Any,
    ) -> Any:
        given = (hidden_states, cache_params, attention_mask)
        if cache_params is None or is_compiling() or torch.is_grad_enabled():
            return forward(self, *given, **more)
        if attention_mask is None and not any(each is not None for each in more.values()):
            states = _states(cache_params, self)
            if states is not None:
                step = partial(_own_step, forward, cache_params)
                out = few.taken(step, self, hidden_states, *states)
                if out is not None:
                    return out
        return forward(self, *given, **more)

    return call


def _states(cache: Any, mixer: Any) -> tuple[Tensor, Tensor] | None:
    """The two states of a mixer that has read something; None where it has others, or none."""
    try:
        layer = cache.layers[mixer.layer_idx]
        if getattr(cache, "offloading", False) or layer.record_past:
            return None
        if not layer.has_previous_state[0] or not layer.is_recurrent_states_initialized[0]:
            return None
        return layer.conv_states[0], layer.recurrent_states[0]
    except (AttributeError, IndexError, KeyError, TypeError):  # a cache of another making
        return None


def _own_step(
    forward: Forward, cache: Any, mixer: Any, hidden: Tensor, conv_state: Tensor, state: Tensor
) -> tuple[Any]:
    """The mixer's own result, with these states in the place of the cache's."""
    twin = copy.copy(cache)
    layer = copy.copy(cache.layers[mixer.layer_idx])
    twin.layers = [*cache.layers]
    twin.layers[mixer.layer_idx] = layer
    layer.conv_states, layer.recurrent_states = {0: conv_state}, {0: state}
    return (forward(mixer, hidden, twin, None),)


def _options(mixer: Any) -> OfMamba | OfMamba2:
    """What a token reads of a mixer; raises AttributeError where it is another than it seems."""
    if "x_proj" in mixer._modules:
        return OfMamba(mixer.time_step_rank, mixer.ssm_state_size, mixer.activation)
    norm = mixer.norm
    return OfMamba2(
        d_ssm=mixer.intermediate_size,
        ngroups=mixer.n_groups,
        d_state=mixer.ssm_state_size,
        headdim=mixer.head_dim,
        activation=mixer.activation,
        rmsnorm=True,
        eps=norm.variance_epsilon,
        group_size=getattr(norm, "group_size", None),
        norm_before_gate=False,
    )
