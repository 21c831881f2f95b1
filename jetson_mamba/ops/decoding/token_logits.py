"""A token's product with a model's vocabulary, a third of what a CPU reads for one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import autocast_dtype
from jetson_mamba.dispatch.operators import is_compiling
from jetson_mamba.dispatch.paths import Way, may_replay, way, without_gradients
from jetson_mamba.dispatch.projections import are_plain

from .products_cpu import MOST_VECTORS, product


def vocabulary(head: Any, hidden_states: Any) -> Any:
    """``head(hidden_states)``, of one token for each sequence of a batch by the fastest product.

    That is where a plain head and (batch, 1, d_model) are in float32 on a CPU, and nothing records
    or looks on; equal to rounding. ``JETSON_MAMBA_INFERENCE=off`` switches it off.
    """
    if is_compiling() or not _is_token(hidden_states) or not are_plain((head,)):
        return head(hidden_states)
    weight, bias = head._parameters["weight"], head._parameters["bias"]
    if not _serves(hidden_states, weight, bias):
        return head(hidden_states)
    return product(hidden_states.squeeze(1), weight, bias).unsqueeze(1)


def _is_token(hidden: Any) -> bool:
    return (
        type(hidden) is Tensor
        and hidden.is_cpu
        and hidden.dtype == torch.float32
        and hidden.dim() == 3
        and hidden.shape[1] == 1
        and 0 < hidden.shape[0] <= MOST_VECTORS
    )


def _serves(hidden: Tensor, weight: Any, bias: Any) -> bool:
    tensors = (hidden, weight) if bias is None else (hidden, weight, bias)
    for each in tensors:
        if type(each) not in (Tensor, torch.nn.Parameter):
            return False
        if not each.is_cpu or each.dtype != torch.float32:
            return False
    return (
        weight.dim() == 2
        and weight.shape[1] == hidden.shape[2]
        and (bias is None or bias.shape == weight.shape[:1])
        and way(*tensors) is Way.KERNELS
        and without_gradients(*tensors)
        and may_replay()
        and autocast_dtype(hidden.device) is None
    )
