"""States that record a gradient where one is wanted, for callers that have one without them.

mamba_ssm's kernels for a step record none, its scan none of the last state, and its blocks expect
none. transformers has functions of its own in their place, which do: with the kernels, a pass back
through a cache would lose what goes through the states, without a word. So it is given these where
it would have its own without this package. Where it would have kernels, on a GPU with the compiled
extensions, it has them: a program that goes on without a pass back keeps no graph there.
"""

from __future__ import annotations

from functools import wraps
from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch.paths import is_transformed
from jetson_mamba.ops.causal_conv1d import causal_conv1d_fn
from jetson_mamba.ops.selective_scan import selective_scan_fn
from jetson_mamba.ops.selective_scan.autograd import recorded_last_state

from .op import recorded_state_update

Step = Callable[..., Any]


def recorded_convolution_update(
    x: Tensor,
    conv_state: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: str | None = None,
) -> Tensor:
    """``causal_conv1d_update`` of (batch, dim, seqlen), which autograd can go back through.

    The state, (batch, dim, width - 1 or more), holds the latest inputs, the last at its end.
    """
    length, before = conv_state.shape[-1], weight.shape[-1] - 1
    inputs = torch.cat((conv_state, x.to(conv_state.dtype)), -1)
    history = inputs[..., length - before : length].to(x.dtype)
    out: Tensor = causal_conv1d_fn(x, weight, bias, initial_states=history, activation=activation)
    conv_state.copy_(inputs[..., -length:])
    return out


def recorded_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Any:
    """``selective_scan_fn``, whose last state is differentiable."""
    B, C = (each.unsqueeze(1) if each.dim() == 3 else each for each in (B, C))
    arguments = (u, delta, A, B, C, D, z, delta_bias, delta_softplus)
    found: Any = selective_scan_fn(*arguments, return_last_state)
    if not return_last_state:
        return found
    out, last_state = found
    return out, recorded_last_state(last_state, *arguments)


_RECORDED: dict[str, Step] = {
    "causal_conv1d_update": recorded_convolution_update,
    "selective_scan_fn": recorded_scan,
    "selective_state_update": recorded_state_update,
}


def with_gradients(name: str, function: Step, extension: bool) -> Step:
    """The function of that name, or what records its gradients where some are wanted.

    ``extension``: on a GPU it is ``function`` all the same.
    """
    recorded = _RECORDED.get(name)
    if recorded is None:
        return function

    @wraps(function)
    def call(*arguments: Any, **keywords: Any) -> Any:
        if torch.is_grad_enabled():
            given = [each for each in (*arguments, *keywords.values()) if isinstance(each, Tensor)]
            wanted = is_transformed() or any(each.requires_grad for each in given)
            if wanted and not (extension and given[0].is_cuda):
                return recorded(*arguments, **keywords)
        return function(*arguments, **keywords)

    return call
