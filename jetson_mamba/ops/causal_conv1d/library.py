"""The convolution as operators of ``torch.library``: see ``dispatch/operators.py``."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.in_place import count_write, version
from jetson_mamba.dispatch.operators import define, laid_out_as, or_empty

from . import composed, decomposed
from .contract import Gradients, Implementation


class Operators:
    """What the op calls while a graph is traced, its arguments being checked.

    Arguments are those of ``contract``'s functions, less the tensors that they write to but for
    ``conv_state``. ``choose`` gives the backend for x and weight; it is asked when an operator
    runs.
    """

    def __init__(self, choose: Callable[[Tensor, Tensor], Implementation]) -> None:
        self._choose = choose
        self._forward = define(
            "causal_conv1d(Tensor x, Tensor weight, Tensor? bias, Tensor? seq_idx, "
            "Tensor? initial_states, bool return_final_states, bool silu) -> (Tensor, Tensor)",
            self._run_forward,
            _fake_forward,
            _keep,
            self._differentiate,
            _composed_forward,
            decomposed.forward,
        )
        self._backward = define(
            "causal_conv1d_backward(Tensor x, Tensor weight, Tensor? bias, Tensor dout, "
            "Tensor? seq_idx, Tensor? initial_states, Tensor? dfinal_states, "
            "bool return_dinitial_states, bool silu) -> (Tensor, Tensor, Tensor, Tensor)",
            self._run_backward,
            _fake_backward,
            _keep_again,
            _differentiate_again,
            _composed_backward,
        )
        self._update = define(
            "causal_conv1d_update(Tensor x, Tensor(a!) conv_state, Tensor weight, Tensor? bias, "
            "Tensor? cache_seqlens, Tensor? conv_state_indices, bool silu) -> Tensor",
            self._run_update,
            _fake_update,
            decomposed=decomposed.update,
        )

    def forward(self, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        """The output and, where asked for, the final states; differentiable."""
        out, final_states = self._forward(*arguments)
        return_final_states = arguments[5]
        return out, final_states if return_final_states else None

    def backward(self, *arguments: Any) -> Gradients:
        """The gradients, as ``contract`` has them."""
        dx, dweight, dbias, dinitial_states = self._backward(*arguments)
        bias, return_dinitial_states = arguments[2], arguments[7]
        return (
            dx,
            dweight,
            None if bias is None else dbias,
            dinitial_states if return_dinitial_states else None,
        )

    def update(self, *arguments: Any) -> Tensor:
        """The output of further steps; ``conv_state`` is written."""
        out: Tensor = self._update(*arguments)
        return out

    def _run_forward(self, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
        bias, seq_idx, initial_states, return_final_states, silu = others
        final_states = _states_of(x, weight) if return_final_states else None
        out = self._choose(x, weight).forward(
            x, weight, bias, seq_idx, initial_states, final_states, silu
        )
        return laid_out_as(out, x), or_empty(final_states, x)

    def _run_backward(self, x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
        bias, dout, seq_idx, initial, dfinal, return_dinitial_states, silu = others
        dx, dweight, dbias, dinitial_states = self._choose(x, weight).backward(
            x, weight, bias, dout, seq_idx, initial, dfinal, None, return_dinitial_states, silu
        )
        if dinitial_states is not None:
            dinitial_states = dinitial_states.transpose(1, 2).contiguous().transpose(1, 2)
        return (
            laid_out_as(dx, x),
            dweight.contiguous(),
            or_empty(dbias, weight).contiguous(),
            or_empty(dinitial_states, x),
        )

    def _run_update(self, x: Tensor, conv_state: Tensor, weight: Tensor, *others: Any) -> Tensor:
        before = version(conv_state)
        out = self._choose(x, weight).update(x, conv_state, weight, *others)
        count_write(conv_state, before)
        return laid_out_as(out, x)

    def _differentiate(
        self, ctx: Any, dout: Tensor, dfinal_states: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, seq_idx, initial_states = ctx.saved_tensors
        dx, dweight, dbias, dinitial_states = self.backward(
            x,
            weight,
            bias,
            dout,
            seq_idx,
            initial_states,
            dfinal_states if ctx.return_final_states else None,
            initial_states is not None,
            ctx.silu,
        )
        return dx, dweight, dbias, None, dinitial_states, None, None


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.return_final_states, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _states_of(x: Tensor, weight: Tensor) -> Tensor:
    """Room for (batch, dim, width - 1), channels contiguous, as causal-conv1d lays states out."""
    return x.new_empty((x.shape[0], weight.shape[1] - 1, x.shape[1])).transpose(1, 2)


def _fake_forward(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return_final_states = others[3]
    final_states = _states_of(x, weight) if return_final_states else None
    return torch.empty_like(x), or_empty(final_states, x)


def _fake_backward(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, ...]:
    bias, return_dinitial_states = others[0], others[5]
    dbias = None if bias is None else weight.new_empty(bias.shape)
    dinitial_states = _states_of(x, weight) if return_dinitial_states else None
    return (
        torch.empty_like(x),
        weight.new_empty(weight.shape),
        or_empty(dbias, weight),
        or_empty(dinitial_states, x),
    )


def _fake_update(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, ctx.return_dinitial_states, ctx.silu = inputs
    ctx.save_for_backward(*tensors)


def _differentiate_again(ctx: Any, *dgradients: Tensor) -> tuple[Tensor | None, ...]:
    arguments = (*ctx.saved_tensors, ctx.return_dinitial_states, ctx.silu)
    *of_tensors, _, _ = ctx.needs_input_grad
    needed = (*of_tensors, False, False)
    return twice.gradients(_composed_backward, arguments, needed, dgradients)


def _composed_forward(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    weight, bias, seq_idx, initial_states, return_final_states, silu = others
    out, final_states = composed.forward(x, weight, bias, seq_idx, initial_states, silu)
    return out, or_empty(final_states if return_final_states else None, x)


def _composed_backward(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(or_empty(gradient, x) for gradient in composed.backward(x, *others))
