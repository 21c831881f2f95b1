"""The scan as operators of ``torch.library``: see ``ops/operators.py``.

They take no z: the gate is one elementwise step, which a compiler fuses with what follows. So
nothing has to be kept for the backward pass but the arguments, whichever backend serves.
"""

from __future__ import annotations

from typing import Any, Callable

from torch import Tensor

from ..operators import define, or_empty
from .contract import Implementation, Scan, ScanGradients

_ARGUMENTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "Tensor? initial_states, Tensor? seq_idx, int chunk_size, bool dt_softplus, float dt_least, "
    "float dt_most"
)
_TENSORS = 9


class Operators:
    """What the op calls while a graph is traced, its arguments being checked.

    ``choose`` gives the backend for a scan; it is asked when an operator runs.
    """

    def __init__(self, choose: Callable[[Scan], Implementation]) -> None:
        self._choose = choose
        self._forward = define(
            f"ssd_scan({_ARGUMENTS}) -> (Tensor, Tensor)",
            self._run_forward,
            _fake_forward,
            _keep,
            self._differentiate,
        )
        self._backward = define(
            f"ssd_scan_backward(Tensor dout, Tensor dfinal_states, {_ARGUMENTS}) -> "
            "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
            self._run_backward,
            _fake_backward,
        )

    def scan(self, given: Scan) -> tuple[Tensor, Tensor]:
        """The output before the gate, and the last state; differentiable."""
        least, most = given.dt_limit
        out, final_states = self._forward(
            given.x,
            given.dt,
            given.A,
            given.B,
            given.C,
            given.D,
            given.dt_bias,
            given.initial_states,
            given.seq_idx,
            given.chunk_size,
            given.dt_softplus,
            float(least),
            float(most),
        )
        return out, final_states

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        given = _scan(*arguments)
        out, final_states, _ = self._choose(given).scan_forward(given)
        return out, final_states

    def _run_backward(
        self, dout: Tensor, dfinal_states: Tensor, *arguments: Any
    ) -> tuple[Tensor, ...]:
        given = _scan(*arguments)
        return _present(self._choose(given).scan_backward(given, dout, dfinal_states), given.x)

    def _differentiate(self, ctx: Any, dout: Tensor, dfinal_states: Tensor) -> tuple[Any, ...]:
        gradients = self._backward(dout, dfinal_states, *ctx.saved_tensors, *ctx.options)
        given = ctx.saved_tensors[: len(gradients)]
        found = [None if tensor is None else each for tensor, each in zip(given, gradients)]
        return (*found, *(None,) * (1 + len(ctx.options)))


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    initial_states: Tensor | None,
    seq_idx: Tensor | None,
    chunk_size: int,
    dt_softplus: bool,
    dt_least: float,
    dt_most: float,
) -> Scan:
    return Scan(
        *(x, dt, A, B, C, D, None, dt_bias, initial_states, seq_idx),
        cu_seqlens=None,
        chunk_size=chunk_size,
        dt_softplus=dt_softplus,
        dt_limit=(dt_least, dt_most),
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:]


def _present(gradients: ScanGradients, like: Tensor) -> tuple[Tensor, ...]:
    return tuple(or_empty(each, like).contiguous() for each in gradients)


def _fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    given = _scan(*arguments)
    batch, _, nheads, headdim = given.x.shape
    final_states = given.x.new_empty((batch, nheads, headdim, given.B.shape[3]), dtype=given.dtype)
    return given.x.new_empty(given.x.shape), final_states


def _fake_backward(dout: Tensor, dfinal_states: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    given = _scan(*arguments)

    def room(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.new_empty(tensor.shape)

    return _present(
        ScanGradients(
            *(given.x.new_empty(each.shape, dtype=each.dtype) for each in given[:5]),
            *(room(each) for each in (given.D, given.dt_bias, given.initial_states)),
        ),
        given.x,
    )
