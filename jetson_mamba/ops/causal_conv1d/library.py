"""The convolution as operators of ``torch.library``: see ``dispatch/operators.py``."""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.fields import Fields
from jetson_mamba.dispatch.in_place import count_write, version
from jetson_mamba.dispatch.operators import define, laid_out_as, or_empty

from . import composed, decomposed
from .contract import Gradients, Implementation


class _Forward(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    seq_idx: Tensor | None
    initial_states: Tensor | None
    return_final_states: bool
    silu: bool


class _Backward(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dout: Tensor
    seq_idx: Tensor | None
    initial_states: Tensor | None
    dfinal_states: Tensor | None
    return_dinitial_states: bool
    silu: bool


_FORWARD, _BACKWARD = Fields(_Forward), Fields(_Backward)


class Operators:
    """What the op calls while a graph is traced, its arguments being checked.

    Arguments are those of ``contract``'s functions, less the tensors that they write to but for
    ``conv_state``. ``choose`` gives the backend for x and weight; it is asked when an operator
    runs.
    """

    def __init__(self, choose: Callable[[Tensor, Tensor], Implementation]) -> None:
        self._choose = choose
        self._forward = define(
            f"causal_conv1d({_FORWARD.schema}) -> (Tensor, Tensor)",
            self._run_forward,
            _fake_forward,
            _keep,
            self._differentiate,
            _composed_forward,
            decomposed.forward,
        )
        self._backward = define(
            f"causal_conv1d_backward({_BACKWARD.schema}) -> (Tensor, Tensor, Tensor, Tensor)",
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
        given = _Forward(*arguments)
        out, final_states = self._forward(*given)
        return out, final_states if given.return_final_states else None

    def backward(self, *arguments: Any) -> Gradients:
        """The gradients, as ``contract`` has them."""
        given = _Backward(*arguments)
        dx, dweight, dbias, dinitial_states = self._backward(*given)
        return (
            dx,
            dweight,
            None if given.bias is None else dbias,
            dinitial_states if given.return_dinitial_states else None,
        )

    def update(self, *arguments: Any) -> Tensor:
        """The output of further steps; ``conv_state`` is written."""
        out: Tensor = self._update(*arguments)
        return out

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        x, weight, bias, seq_idx, initial_states, return_final_states, silu = _Forward(*arguments)
        final_states = _states_of(x, weight) if return_final_states else None
        out = self._choose(x, weight).forward(
            x, weight, bias, seq_idx, initial_states, final_states, silu
        )
        return laid_out_as(out, x), or_empty(final_states, x)

    def _run_backward(self, *arguments: Any) -> tuple[Tensor, ...]:
        given = _Backward(*arguments)
        x, weight = given.x, given.weight
        tensors, options = _BACKWARD.unpack(given)
        backward: Any = self._choose(x, weight).backward
        # No dx to write to.
        dx, dweight, dbias, dinitial_states = backward(*tensors, None, *options)
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
        given, _ = _FORWARD.kept(ctx)
        found = self.backward(
            *(given.x, given.weight, given.bias, dout, given.seq_idx, given.initial_states),
            dfinal_states if given.return_final_states else None,
            given.initial_states is not None,
            given.silu,
        )
        return _FORWARD.gradients(dict(zip(("x", "weight", "bias", "initial_states"), found)))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _FORWARD.keep(ctx, _Forward(*inputs))


def _states_of(x: Tensor, weight: Tensor) -> Tensor:
    """Room for (batch, dim, width - 1), channels contiguous, as causal-conv1d lays states out."""
    return x.new_empty((x.shape[0], weight.shape[1] - 1, x.shape[1])).transpose(1, 2)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    given = _Forward(*arguments)
    x = given.x
    final_states = _states_of(x, given.weight) if given.return_final_states else None
    return torch.empty_like(x), or_empty(final_states, x)


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    given = _Backward(*arguments)
    x, weight, bias = given.x, given.weight, given.bias
    dbias = None if bias is None else weight.new_empty(bias.shape)
    dinitial_states = _states_of(x, weight) if given.return_dinitial_states else None
    return (
        torch.empty_like(x),
        weight.new_empty(weight.shape),
        or_empty(dbias, weight),
        or_empty(dinitial_states, x),
    )


def _fake_update(x: Tensor, *others: Any) -> Tensor:
    return torch.empty_like(x)


def _keep_again(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _BACKWARD.keep(ctx, _Backward(*inputs))


def _differentiate_again(ctx: Any, *dgradients: Tensor) -> tuple[Tensor | None, ...]:
    given, _ = _BACKWARD.kept(ctx)
    return twice.gradients(_composed_backward, given, ctx.needs_input_grad, dgradients)


def _composed_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    x, weight, bias, seq_idx, initial_states, return_final_states, silu = _Forward(*arguments)
    out, final_states = composed.forward(x, weight, bias, seq_idx, initial_states, silu)
    return out, or_empty(final_states if return_final_states else None, x)


def _composed_backward(x: Tensor, *others: Any) -> tuple[Tensor, ...]:
    return tuple(or_empty(gradient, x) for gradient in composed.backward(x, *others))
