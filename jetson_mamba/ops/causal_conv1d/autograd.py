"""The derivatives of the convolution by a backend, an autograd function around its two passes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.fields import Fields, Tensors
from jetson_mamba.dispatch.in_place import count_write, version
from jetson_mamba.dispatch.paths import Way, way_back

from . import composed
from .contract import Implementation


class _Arguments(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    seq_idx: Tensor | None
    initial_states: Tensor | None
    silu: bool


_FIELDS = Fields(_Arguments)


def differentiable(
    implementation: Implementation,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    seq_idx: Tensor | None,
    initial_states: Tensor | None,
    final_states_out: Tensor | None,
    silu: bool,
) -> tuple[Tensor, Tensor | None]:
    """The output and ``final_states_out`` of ``contract.Forward``, with a graph."""
    found: tuple[Tensor, Tensor | None] = _CausalConv1d.apply(  # type: ignore[no-untyped-call]
        x, weight, bias, seq_idx, initial_states, silu, final_states_out, implementation
    )
    return found


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        given, (final_states_out, ctx.implementation) = _FIELDS.split(arguments)
        ctx.set_materialize_grads(False)
        _FIELDS.keep(ctx, given)
        before = version(final_states_out)
        tensors, (silu,) = _FIELDS.unpack(given)
        out = ctx.implementation.forward(*tensors, final_states_out, silu)
        count_write(final_states_out, before)
        # final_states_out is not marked as modified: the caller's buffer would become part of
        # the graph, and the graph of one call would reach into that of the next.
        return out, final_states_out

    @staticmethod
    def backward(
        ctx: Any, dout: Tensor | None, dfinal_states: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        given, _ = _FIELDS.kept(ctx)
        needs: Any = _FIELDS.split(ctx.needs_input_grad)[0]
        found: Tensors
        if dout is None and dfinal_states is None:
            found = _FIELDS.gradients({})
        elif torch.is_grad_enabled() or way_back(dout, dfinal_states) is not Way.KERNELS:
            found = twice.gradients(composed.forward, given, needs, (dout, dfinal_states))
        else:
            dx, dweight, dbias, dinitial_states = ctx.implementation.backward(
                given.x,
                given.weight,
                given.bias,
                torch.zeros_like(given.x) if dout is None else dout,
                given.seq_idx,
                given.initial_states,
                dfinal_states,
                None,
                needs.initial_states,
                given.silu,
            )
            found = _FIELDS.gradients(
                {
                    "x": dx if needs.x else None,
                    "weight": dweight if needs.weight else None,
                    "bias": dbias if needs.bias else None,
                    "initial_states": dinitial_states,
                }
            )
        return (*found, None, None)
