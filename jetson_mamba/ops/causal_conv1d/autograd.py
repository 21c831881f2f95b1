"""The derivatives of the convolution by a backend, an autograd function around its two passes."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.fields import Fields
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
    final_states_out: Tensor | None
    silu: bool
    implementation: Implementation


_FIELDS = Fields(_Arguments)


def differentiable(implementation: Implementation, *arguments: Any) -> tuple[Tensor, Tensor | None]:
    """The output and ``final_states_out`` of ``contract.Forward``, with a graph."""
    found: tuple[Tensor, Tensor | None] = _CausalConv1d.apply(  # type: ignore[no-untyped-call]
        *arguments, implementation
    )
    return found


class _CausalConv1d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        x, weight, bias, seq_idx, initial_states, final_states_out, silu, implementation = arguments
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, seq_idx, initial_states)
        ctx.silu, ctx.implementation = silu, implementation
        before = version(final_states_out)
        out = implementation.forward(*arguments[:-1])
        count_write(final_states_out, before)
        # final_states_out is not marked as modified: the caller's buffer would become part of
        # the graph, and the graph of one call would reach into that of the next.
        return out, final_states_out

    @staticmethod
    def backward(
        ctx: Any, dout: Tensor | None, dfinal_states: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if dout is None and dfinal_states is None:
            return _FIELDS.gradients({})
        x, weight, bias, seq_idx, initial_states = ctx.saved_tensors
        needs: Any = _Arguments(*ctx.needs_input_grad)
        if torch.is_grad_enabled() or way_back(dout, dfinal_states) is not Way.KERNELS:
            dx, dweight, dbias, _, dinitial_states, _ = twice.gradients(
                composed.forward,
                (x, weight, bias, seq_idx, initial_states, ctx.silu),
                (needs.x, needs.weight, needs.bias, False, needs.initial_states, False),
                (dout, dfinal_states),
            )
        else:
            dx, dweight, dbias, dinitial_states = ctx.implementation.backward(
                x,
                weight,
                bias,
                torch.zeros_like(x) if dout is None else dout,
                seq_idx,
                initial_states,
                dfinal_states,
                None,
                needs.initial_states,
                ctx.silu,
            )
        return _FIELDS.gradients(
            {
                "x": dx if needs.x else None,
                "weight": dweight if needs.weight else None,
                "bias": dbias if needs.bias else None,
                "initial_states": dinitial_states,
            }
        )
