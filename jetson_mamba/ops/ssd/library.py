"""Mamba-2 as operators of ``torch.library``: the scan, the core of a mixer.

The scan takes no z: the gate is one elementwise step, which a compiler fuses with what follows. So
nothing has to be kept for its backward pass but the arguments, whichever backend serves. What torch
asks of an operator beyond a result and a gradient is answered by the composed form.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import without_autocast
from jetson_mamba.dispatch.operators import define, or_empty
from jetson_mamba.dispatch.twice import gradients

from . import composed, decomposed
from .contract import Core, CoreGradients, Implementation, Mixer, Scan, ScanGradients

_ARGUMENTS = (
    "Tensor x, Tensor dt, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "Tensor? initial_states, Tensor? seq_idx, int chunk_size, bool dt_softplus, float dt_least, "
    "float dt_most, ScalarType? state_dtype=None"
)
_TENSORS = 9
_CORE_ARGUMENTS = (
    "Tensor zxbcdt, Tensor conv1d_weight, Tensor? conv1d_bias, Tensor dt_bias, Tensor A, Tensor D, "
    "Tensor rmsnorm_weight, Tensor? seq_idx, int chunk_size, float dt_least, float dt_most, "
    "str? activation, float rmsnorm_eps, int headdim, int ngroups, bool norm_before_gate, "
    "ScalarType? state_dtype=None"
)
_CORE_TENSORS = 8


class Operators:
    """What the op calls while a graph is traced, its arguments being checked.

    ``choose`` gives the backend for a scan or a mixer; it is asked when an operator runs.
    """

    def __init__(self, choose: Callable[[Scan | Mixer], Implementation]) -> None:
        self._choose = choose
        self._forward = define(
            f"ssd_scan({_ARGUMENTS}) -> (Tensor, Tensor)",
            self._run_forward,
            _fake_forward,
            _keep,
            self._differentiate,
            lambda *given: composed.scan(_scan(*given))[:2],
            lambda *given: decomposed.scan(_scan(*given)),
        )
        self._backward = define(
            f"ssd_scan_backward(Tensor dout, Tensor dfinal_states, {_ARGUMENTS}) -> "
            "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
            self._run_backward,
            _fake_backward,
            _keep_all,
            _differentiate_backward,
        )
        self._core = define(
            f"ssd_core({_CORE_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
            self._run_core,
            _fake_core,
            _keep_core,
            self._differentiate_core,
            _composed_core,
            lambda *given: decomposed.core(_mixer(*given)),
        )
        self._core_backward = define(
            "ssd_core_backward(Tensor dout, Tensor? dfinal_states, Tensor xBC, Tensor scanned, "
            f"Tensor rstd, {_CORE_ARGUMENTS}) -> "
            "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
            self._run_core_backward,
            _fake_core_backward,
            _keep_all,
            _differentiate_core_backward,
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
            given.state_dtype,
        )
        return out, final_states

    def core(self, given: Mixer) -> tuple[Tensor, Tensor]:
        """The output between norm and projection, and the last state; differentiable.

        The mixer has a norm, and neither an MLP nor initial states.
        """
        least, most = given.dt_limit
        out, final_states, *_ = self._core(
            given.zxbcdt,
            given.conv1d_weight,
            given.conv1d_bias,
            given.dt_bias,
            given.A,
            given.D,
            given.rmsnorm_weight,
            given.seq_idx,
            given.chunk_size,
            float(least),
            float(most),
            given.activation,
            given.rmsnorm_eps,
            given.headdim,
            given.ngroups,
            given.norm_before_gate,
            given.state_dtype,
        )
        return out, final_states

    def _run_core(self, *arguments: Any) -> Core:
        given = _mixer(*arguments)
        return self._choose(given).core_forward(given)

    def _run_core_backward(
        self,
        dout: Tensor,
        dfinal_states: Tensor | None,
        xBC: Tensor,
        scanned: Tensor,
        rstd: Tensor,
        *arguments: Any,
    ) -> tuple[Tensor, ...]:
        given = _mixer(*arguments)
        # The output of the norm is not looked at, nor is the last state.
        kept = Core(dout, scanned, xBC, scanned, rstd)
        return _all_present(self._choose(given).core_backward(given, kept, dout, dfinal_states))

    def _differentiate_core(
        self, ctx: Any, dout: Tensor | None, dfinal_states: Tensor | None, *_: Any
    ) -> tuple[Any, ...]:
        *arguments, xBC, scanned, rstd = ctx.saved_tensors
        if dout is None:
            dout = scanned.new_zeros(scanned.shape).flatten(2)
        gradients = self._core_backward(
            dout, dfinal_states, xBC, scanned, rstd, *arguments, *ctx.options
        )
        found = [None if each is None else g for each, g in zip(arguments, gradients)]
        return (*found, *(None,) * (1 + len(ctx.options)))

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
        arguments = ctx.saved_tensors
        gradients = self._backward(dout, dfinal_states, *arguments, *ctx.options)
        found = [None if each is None else g for each, g in zip(arguments, gradients)]
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
    # torch leaves out what has its default at the end.
    state_dtype: torch.dtype | None = None,
) -> Scan:
    return Scan(
        *(x, dt, A, B, C, D, None, dt_bias, initial_states, seq_idx),
        cu_seqlens=None,
        chunk_size=chunk_size,
        dt_softplus=dt_softplus,
        dt_limit=(dt_least, dt_most),
        state_dtype=state_dtype,
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

    return _present(_like(ScanGradients, given), given.x)


def _like(kind: Any, given: Scan | Mixer) -> Any:
    """Gradients of a kind, empty, of what they belong to."""
    tensors = {name: getattr(given, name) for name in kind._fields}
    return kind(
        **{name: None if x is None else x.new_empty(x.shape) for name, x in tensors.items()}
    )


def _mixer(
    zxbcdt: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    dt_bias: Tensor,
    A: Tensor,
    D: Tensor,
    rmsnorm_weight: Tensor,
    seq_idx: Tensor | None,
    chunk_size: int,
    dt_least: float,
    dt_most: float,
    activation: str | None,
    *others: Any,
) -> Mixer:
    rmsnorm_eps, headdim, ngroups, norm_before_gate, *given = others
    state_dtype = given[0] if given else None
    return Mixer(
        *(zxbcdt, conv1d_weight, conv1d_bias, dt_bias, A, D),
        initial_states=None,
        rmsnorm_weight=rmsnorm_weight,
        outproj_weight=None,
        outproj_bias=None,
        seq_idx=seq_idx,
        chunk_size=chunk_size,
        dt_limit=(dt_least, dt_most),
        activation=activation,
        rmsnorm_eps=rmsnorm_eps,
        headdim=headdim,
        ngroups=ngroups,
        norm_before_gate=norm_before_gate,
        state_dtype=state_dtype,
    )


def _keep_all(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Of an operator of gradients: its arguments."""
    ctx.set_materialize_grads(False)
    ctx.is_tensor = [isinstance(each, Tensor) for each in inputs]
    ctx.save_for_backward(*(each for each in inputs if isinstance(each, Tensor)))
    ctx.others = [None if isinstance(each, Tensor) else each for each in inputs]


def _second_derivatives(
    ctx: Any, first: Callable[..., tuple[Tensor, ...]], dgradients: Sequence[Tensor | None]
) -> tuple[Any, ...]:
    """The gradients of ``first``, which is an operator of gradients as tensor operations."""
    tensors = iter(ctx.saved_tensors)
    inputs = [
        next(tensors) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.others)
    ]
    with without_autocast(inputs[0].device):
        return gradients(first, inputs, ctx.needs_input_grad, dgradients)


def _differentiate_backward(ctx: Any, *dgradients: Tensor | None) -> tuple[Any, ...]:
    return _second_derivatives(ctx, _composed_gradients, dgradients)


def _differentiate_core_backward(ctx: Any, *dgradients: Tensor | None) -> tuple[Any, ...]:
    return _second_derivatives(ctx, _composed_core_gradients, dgradients)


def _pulled_back(
    function: Callable[..., tuple[Tensor, ...]],
    arguments: Sequence[Any],
    dresults: Sequence[Tensor | None],
    count: int,
) -> tuple[Tensor, ...]:
    """The gradients by the first ``count`` arguments, as tensor operations; empty for None."""
    places = [place for place in range(count) if arguments[place] is not None]

    def of(*tensors: Tensor) -> tuple[Tensor, ...]:
        given = list(arguments)
        for place, tensor in zip(places, tensors):
            given[place] = tensor
        return tuple(r for r, d in zip(function(*given), dresults) if d is not None)

    pull: Any = torch.func.vjp(of, *(arguments[place] for place in places))[1]
    found = dict(zip(places, pull(tuple(d for d in dresults if d is not None))))
    return tuple(or_empty(found.get(place), arguments[0]) for place in range(count))


def _composed_gradients(dout: Tensor, dfinal_states: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _pulled_back(
        lambda *given: composed.scan(_scan(*given))[:2],
        arguments,
        (dout, dfinal_states),
        len(ScanGradients._fields),
    )


def _composed_core(*arguments: Any) -> tuple[Tensor, ...]:
    """A core, and empty tensors for what its backward pass as a kernel is given again."""
    out, final_states = composed.mixer(_mixer(*arguments), None)
    return (out, final_states, *(out.new_empty(0) for _ in range(3)))


def _composed_core_gradients(
    dout: Tensor,
    dfinal_states: Tensor | None,
    xBC: Tensor,
    scanned: Tensor,
    rstd: Tensor,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    """What is given again is computed of the arguments here: all derivatives are by these."""
    return _pulled_back(
        lambda *given: composed.mixer(_mixer(*given), None),
        arguments,
        (dout, dfinal_states),
        len(CoreGradients._fields),
    )


def _keep_core(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:_CORE_TENSORS], *output[2:])
    ctx.options = inputs[_CORE_TENSORS:]


def _all_present(gradients: CoreGradients) -> tuple[Tensor, ...]:
    like = gradients.zxbcdt
    return tuple(or_empty(each, like).contiguous() for each in gradients)


def _fake_core(*arguments: Any) -> Core:
    given = _mixer(*arguments)
    whole, nheads = given.zxbcdt, given.A.shape[0]
    batch, seqlen, _ = whole.shape
    channels = given.conv1d_weight.shape[0]
    dim = nheads * given.headdim
    dstate = (channels - dim) // given.ngroups // 2
    rows = given.ngroups * batch * seqlen
    return Core(
        whole.new_empty((batch, seqlen, dim)),
        whole.new_empty((batch, nheads, given.headdim, dstate), dtype=given.dtype),
        whole.new_empty((batch, seqlen, channels)),
        whole.new_empty((batch, seqlen, nheads, given.headdim)),
        whole.new_empty((rows,), dtype=given.dtype),
    )


def _fake_core_backward(
    dout: Tensor,
    dfinal_states: Tensor | None,
    xBC: Tensor,
    scanned: Tensor,
    rstd: Tensor,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    given = _mixer(*arguments)
    return _all_present(_like(CoreGradients, given))
