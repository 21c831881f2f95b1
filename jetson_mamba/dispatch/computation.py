"""The derivatives of what a backend computes with kernels: one autograd function for all.

A backend has a forward and a backward pass, and autograd records neither. What is saved between
them is unpacked in one place, once, as ``torch.utils.checkpoint`` and other users of saved tensors'
hooks demand. Where kernels cannot serve a backward pass, that of the composed form is taken.
"""

from __future__ import annotations

from typing import Any, Callable, Generic, Mapping, Sequence

import torch
from torch import Tensor

from .autocast import without_autocast
from .fields import Arguments, Fields, Tensors
from .paths import Way, way_back
from .twice import gradients


class Computation(Generic[Arguments]):
    """Two passes of a backend, and the function that they belong to as tensor operations.

    All take the same arguments, a NamedTuple whose first field is a tensor, and ``others``.
    ``forward`` returns the results, and what ``backward`` is given again; ``backward`` takes the
    arguments, that, the gradients of the results, each None where there is none, and the others,
    and returns gradients by the names of the arguments.
    """

    def __init__(
        self,
        fields: Fields[Arguments],
        forward: Callable[..., tuple[Tensors, Sequence[Tensor]]],
        backward: Callable[..., Mapping[str, Tensor | None]],
        composed: Callable[..., Tensors],
    ) -> None:
        self.fields = fields
        self.forward = forward
        self.backward = backward
        self.composed = composed

    def __call__(self, given: Arguments, *others: Any) -> Any:
        """The results, with a graph."""
        # The fewer arguments, the less torch's own wrapper has to look at.
        tensors, options = self.fields.unpack(given)
        return _Function.apply(*tensors, self, options, others)  # type: ignore[no-untyped-call]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensors:
        *tensors, computation, options, others = arguments
        given = computation.fields.pack(tensors, options)
        ctx.set_materialize_grads(False)
        ctx.computation, ctx.others = computation, others
        results, kept = computation.forward(given, *others)
        computation.fields.keep(ctx, given, *kept)
        return results  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *dresults: Tensor | None) -> tuple[Any, ...]:
        computation, others = ctx.computation, ctx.others
        fields = computation.fields
        given, kept = fields.kept(ctx)
        tensors, options = fields.unpack(given)
        with without_autocast(tensors[0].device):
            if torch.is_grad_enabled() or way_back(*dresults) is not Way.KERNELS:
                found = gradients(
                    lambda *given: computation.composed(fields.pack(given, options), *others),
                    tensors,
                    ctx.needs_input_grad[: len(tensors)],
                    dresults,
                )
            else:
                gradients_by_name = computation.backward(given, kept, dresults, *others)
                found = fields.gradients_of_tensors(gradients_by_name)
        return (*found, None, None, None)
