"""The derivatives of what a backend computes with kernels: one autograd function for all.

A backend has a forward and a backward pass, and of both no graph. What is saved between them is
unpacked in one place, once, as ``torch.utils.checkpoint`` and other users of saved tensors' hooks
demand. A backward pass that kernels cannot serve is that of the composed form.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import without_autocast
from jetson_mamba.dispatch.paths import Way, way_back
from jetson_mamba.dispatch.twice import gradients

from .contract import Scan

Tensors = Tuple[Optional[Tensor], ...]


class Computation(NamedTuple):
    """Two passes of a backend, and the function that they belong to as tensor operations.

    All take the same arguments, the first ``tensors`` of which are tensors or None and the first of
    all is a tensor. ``forward`` returns the results, and what ``backward`` is given again;
    ``backward`` takes the arguments, that, and the gradients of the results, each None where there
    is none, and returns the gradients of the first arguments.
    """

    tensors: int
    forward: Callable[..., tuple[Tensors, Sequence[Tensor]]]
    backward: Callable[[tuple[Any, ...], Sequence[Tensor], Tensors], Sequence[Tensor | None]]
    composed: Callable[..., Tensors]

    def __call__(self, *arguments: Any) -> Any:
        """The results, with a graph."""
        return _Function.apply(self, *arguments)  # type: ignore[no-untyped-call]


def refuse_varlen_states(given: Scan) -> None:
    """Raise RuntimeError for a scan of which kernels have no backward pass."""
    if given.cu_seqlens is not None:
        raise RuntimeError("return_varlen_states: a scan that returns them has no backward")


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, computation: Computation, *arguments: Any) -> Tensors:
        results, kept = computation.forward(*arguments)
        ctx.set_materialize_grads(False)
        ctx.computation = computation
        ctx.options = arguments[computation.tensors :]
        ctx.save_for_backward(*arguments[: computation.tensors], *kept)
        return results

    @staticmethod
    def backward(ctx: Any, *dresults: Tensor | None) -> tuple[Any, ...]:
        computation, options = ctx.computation, ctx.options
        saved = ctx.saved_tensors
        tensors, kept = saved[: computation.tensors], saved[computation.tensors :]
        found: Sequence[Tensor | None]
        with without_autocast(tensors[0].device):
            if torch.is_grad_enabled() or way_back(*dresults) is not Way.KERNELS:
                found = gradients(
                    lambda *given: computation.composed(*given, *options),
                    tensors,
                    ctx.needs_input_grad[1 : 1 + len(tensors)],
                    dresults,
                )
            else:
                found = computation.backward((*tensors, *options), kept, dresults)
        return (None, *found, *(None,) * (computation.tensors - len(found) + len(options)))
