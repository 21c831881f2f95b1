"""Mamba-2 as operators of ``torch.library``: the scan, the core of a mixer.

The scan takes no z: the gate is one elementwise step, which a compiler fuses with what follows. So
nothing has to be kept for its backward pass but the arguments, whichever backend serves. What torch
asks of an operator beyond a result and a gradient is answered by the composed form.
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import without_autocast
from jetson_mamba.dispatch.fields import Fields
from jetson_mamba.dispatch.operators import define, or_empty
from jetson_mamba.dispatch.twice import gradients

from . import composed, decomposed
from .contract import Core, CoreGradients, Implementation, Mixer, Scan, ScanGradients


class ScanArguments(NamedTuple):
    """What the operator of a scan is given: no z, each of the two limits as a number."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    dt_bias: Tensor | None
    initial_states: Tensor | None
    seq_idx: Tensor | None
    chunk_size: int
    dt_softplus: bool
    dt_least: float
    dt_most: float
    state_dtype: torch.dtype | None = None


class _CoreArguments(NamedTuple):
    """What the operator of a mixer's core is given: neither a projection nor initial states."""

    zxbcdt: Tensor
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    dt_bias: Tensor
    A: Tensor
    D: Tensor
    rmsnorm_weight: Tensor
    seq_idx: Tensor | None
    chunk_size: int
    dt_least: float
    dt_most: float
    activation: str | None
    rmsnorm_eps: float
    headdim: int
    ngroups: int
    norm_before_gate: bool
    state_dtype: torch.dtype | None = None


_SCAN, _CORE = Fields(ScanArguments), Fields(_CoreArguments)


class Operators:
    """What the op calls while a graph is traced, its arguments being checked.

    ``choose`` gives the backend for a scan or a mixer; it is asked when an operator runs.
    """

    def __init__(self, choose: Callable[[Scan | Mixer], Implementation]) -> None:
        self._choose = choose
        self._forward = define(
            f"ssd_scan({_SCAN.schema}) -> (Tensor, Tensor)",
            self._run_forward,
            _fake_forward,
            _keep,
            self._differentiate,
            lambda *given: composed.scan(_scan(*given))[:2],
            lambda *given: decomposed.scan(_scan(*given)),
        )
        self._backward = define(
            f"ssd_scan_backward(Tensor dout, Tensor dfinal_states, {_SCAN.schema}) -> "
            f"({_tensors(ScanGradients)})",
            self._run_backward,
            _fake_backward,
            _keep_all,
            _differentiate_backward,
        )
        self._core = define(
            f"ssd_core({_CORE.schema}) -> ({_tensors(Core)})",
            self._run_core,
            _fake_core,
            _keep_core,
            self._differentiate_core,
            _composed_core,
            lambda *given: decomposed.core(_mixer(*given)),
        )
        self._core_backward = define(
            "ssd_core_backward(Tensor dout, Tensor? dfinal_states, Tensor xBC, Tensor scanned, "
            f"Tensor rstd, {_CORE.schema}) -> ({_tensors(CoreGradients)})",
            self._run_core_backward,
            _fake_core_backward,
            _keep_all,
            _differentiate_core_backward,
        )

    def scan(self, given: Scan) -> tuple[Tensor, Tensor]:
        """The output before the gate, and the last state; differentiable."""
        out, final_states = self._forward(*_flat(ScanArguments, given))
        return out, final_states

    def core(self, given: Mixer) -> tuple[Tensor, Tensor]:
        """The output between norm and projection, and the last state; differentiable.

        The mixer has a norm, and neither an MLP nor initial states.
        """
        out, final_states, *_ = self._core(*_flat(_CoreArguments, given))
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
        arguments, (xBC, scanned, rstd) = _CORE.kept(ctx)
        if dout is None:
            dout = scanned.new_zeros(scanned.shape).flatten(2)
        found = self._core_backward(dout, dfinal_states, xBC, scanned, rstd, *arguments)
        return _CORE.gradients(_given(arguments, CoreGradients(*found)))

    def _run_forward(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        given = _scan(*arguments)
        out, final_states, _ = self._choose(given).scan_forward(given)
        return out, final_states

    def _run_backward(
        self, dout: Tensor, dfinal_states: Tensor, *arguments: Any
    ) -> tuple[Tensor, ...]:
        given = _scan(*arguments)
        if dout.shape != given.x.shape:
            # As a graph has it that holds the sizes that it was traced at, and was given others.
            raise RuntimeError(
                f"dout: expected shape {tuple(given.x.shape)}, as x, found {tuple(dout.shape)}; "
                "trace a function again for inputs of other sizes"
            )
        return _present(self._choose(given).scan_backward(given, dout, dfinal_states), given.x)

    def _differentiate(self, ctx: Any, dout: Tensor, dfinal_states: Tensor) -> tuple[Any, ...]:
        arguments, _ = _SCAN.kept(ctx)
        found = self._backward(dout, dfinal_states, *arguments)
        return _SCAN.gradients(_given(arguments, ScanGradients(*found)))


def _tensors(results: Any) -> str:
    return ", ".join(["Tensor"] * len(results._fields))


def _flat(kind: Any, given: Scan | Mixer) -> Any:
    """What an operator is given of a scan or a mixer."""
    least, most = given.dt_limit
    limits = {"dt_least": float(least), "dt_most": float(most)}
    return kind(
        *[limits[name] if name in limits else getattr(given, name) for name in kind._fields]
    )


def _whole(kind: Any, given: Any) -> Any:
    """The scan or mixer of what an operator is given; what that has not is None, or its default."""
    found = {**dict.fromkeys(kind._fields), **kind._field_defaults, **given._asdict()}
    found["dt_limit"] = (found.pop("dt_least"), found.pop("dt_most"))
    return kind(**found)


def _scan(*arguments: Any) -> Scan:
    scan: Scan = _whole(Scan, ScanArguments(*arguments))
    return scan


def _mixer(*arguments: Any) -> Mixer:
    mixer: Mixer = _whole(Mixer, _CoreArguments(*arguments))
    return mixer


def _given(arguments: Any, found: Any) -> dict[str, Tensor]:
    """Gradients by name, of the arguments that there are: an operator returns empty ones else."""
    gradients = found._asdict().items()
    return {name: each for name, each in gradients if getattr(arguments, name) is not None}


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    _SCAN.keep(ctx, ScanArguments(*inputs))


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
    function: Callable[[Any], tuple[Tensor, ...]],
    given: Any,
    kind: Any,
    dresults: Sequence[Tensor | None],
) -> tuple[Tensor, ...]:
    """The gradients of a kind, as tensor operations; empty for an argument that is None."""
    names = [name for name in kind._fields if getattr(given, name) is not None]

    def of(*tensors: Tensor) -> tuple[Tensor, ...]:
        results = function(given._replace(**dict(zip(names, tensors))))
        return tuple(r for r, d in zip(results, dresults) if d is not None)

    pull: Any = torch.func.vjp(of, *(getattr(given, name) for name in names))[1]
    found = dict(zip(names, pull(tuple(d for d in dresults if d is not None))))
    like = getattr(given, names[0])
    return tuple(or_empty(found.get(name), like) for name in kind._fields)


def _composed_gradients(dout: Tensor, dfinal_states: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return _pulled_back(
        lambda scan: composed.scan(scan)[:2],
        _scan(*arguments),
        ScanGradients,
        (dout, dfinal_states),
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
        lambda mixer: composed.mixer(mixer, None),
        _mixer(*arguments),
        CoreGradients,
        (dout, dfinal_states),
    )


def _keep_core(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.set_materialize_grads(False)
    core = Core(*output)
    _CORE.keep(ctx, _CoreArguments(*inputs), core.xBC, core.scanned, core.rstd)


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
