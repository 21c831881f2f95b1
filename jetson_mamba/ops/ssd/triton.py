"""The ssd op by upstream's own Triton kernels, past its autograd functions.

The kernels take any strides, and compute in float32 whatever the dtypes.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import autocast_dtype, without_autocast
from jetson_mamba.dispatch.computation import Computation
from jetson_mamba.dispatch.fields import Tensors
from jetson_mamba.dispatch.launchers import launchers_of
from jetson_mamba.dispatch.triton_runs import triton_runs_on
from jetson_mamba.errors import Unavailable

from . import composed, core
from .contract import (
    SCAN,
    Case,
    Core,
    CoreGradients,
    Implementation,
    Mixer,
    Scan,
    ScanGradients,
    refuse_varlen_states,
)
from .gates import GatedRMSNorm, gate, swiglu
from .mixer import Columns, compose, convolved, inner_scan, norm_of, project, split_columns

MODULE = "ssd_combined of mamba_ssm"
# The op that stands in for a function of that module, whose copy tells it so.
HANDED_OVER_TO = "chunk_scan_combined_backward"
_SCAN = (
    *("x", "dt", "A", "B", "C", "chunk_size", "D", "z", "dt_bias", "initial_states", "seq_idx"),
    *("dt_softplus", "dt_limit"),
)
_PARAMETERS = {
    "_mamba_chunk_scan_combined_fwd": _SCAN,
    "_mamba_chunk_scan_combined_bwd": (
        *("dout", *_SCAN, "out", "dfinal_states", "dx", "ddt", "dB", "dC"),
    ),
    "_layer_norm_fwd": (
        *("x", "weight", "bias", "eps", "z", "group_size", "norm_before_gate", "is_rms_norm"),
    ),
    "_layer_norm_bwd": (
        *("dy", "x", "weight", "bias", "eps", "mean", "rstd", "z"),
        *("group_size", "norm_before_gate", "is_rms_norm", "dz"),
    ),
}


def load(case: Case) -> Implementation:
    """The implementation, where Triton and an upstream that has the kernels are there."""
    if not triton_runs_on(case.device):
        raise Unavailable(f"Triton has no kernels for {case.device}")
    if case.dtype != torch.float32:
        raise Unavailable(f"upstream's kernels compute in float32, not in {case.dtype}")
    names = launchers_of(HANDED_OVER_TO)
    if names is None:
        raise Unavailable(f"no {MODULE} is imported")
    forward, backward, *norms = [names.get(name) for name in _PARAMETERS]
    implementation = _backend(forward, backward, *norms)
    if case.rounds_states and not all(map(_knows_state_dtype, (forward, backward))):
        raise Unavailable("the kernels of this release know no state_dtype")
    return implementation


@lru_cache(maxsize=8)
def _backend(*functions: Any) -> Implementation:
    for function, (name, parameters) in zip(functions, _PARAMETERS.items()):
        missing = set(parameters) - set(inspect.signature(function).parameters) if function else {}
        if function is None or missing:
            what = f"{name} without {', '.join(sorted(missing))}" if missing else f"no {name}"
            raise Unavailable(f"{MODULE} has {what}")
    backend = _Backend(_Upstream(*functions))
    return Implementation(
        backend.scan,
        backend.mixer,
        backend.scan_forward,
        backend.scan_backward,
        backend.mixer_forward,
        backend.core_forward,
        backend.core_backward,
    )


def _knows_state_dtype(function: Any) -> bool:
    return "state_dtype" in inspect.signature(function).parameters


class _Upstream(NamedTuple):
    """The functions of upstream that launch kernels."""

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    norm: Callable[..., Any]
    norm_backward: Callable[..., Any]


class _Backend:
    def __init__(self, upstream: _Upstream) -> None:
        self._upstream = upstream
        self._steps = core.Steps(self._after_convolution, self._norm_backward, self._scan_backward)
        self._with_graph = Computation(SCAN, self._passes_forward, self._passes_back, composed.scan)

    def scan(self, given: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
        out, state, states = self._with_graph(given._replace(z=None))
        if given.z is not None:
            out = gate(out, given.z).to(out.dtype)
        return out, state, states

    def mixer(self, given: Mixer) -> tuple[Tensor, Tensor]:
        projection_dtype = autocast_dtype(given.zxbcdt.device)
        return compose(given, lambda inner: self.scan(inner)[:2], projection_dtype)

    def scan_forward(self, given: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
        if given.cu_seqlens is not None:
            out, *_, state, states = _forward(self._upstream, given)
            return out, state, states
        out, _, _, _, _, state = _forward(self._upstream, given)
        return out, state, None

    def _passes_forward(
        self, given: Scan
    ) -> tuple[tuple[Tensor, Tensor, Tensor | None], Sequence[Tensor]]:
        return self.scan_forward(given), ()

    def _passes_back(
        self, given: Scan, kept: Sequence[Tensor], dresults: Tensors
    ) -> Mapping[str, Tensor | None]:
        refuse_varlen_states(given)
        dout, dstate, _ = dresults
        dout = torch.zeros_like(given.x) if dout is None else dout
        return self.scan_backward(given, dout, dstate)._asdict()

    def scan_backward(self, given: Scan, dout: Tensor, dstate: Tensor | None) -> ScanGradients:
        dx, ddt, dB, dC = (
            torch.empty(each.shape, dtype=each.dtype, device=each.device)
            for each in (given.x, given.dt, given.B, given.C)
        )
        return self._scan_backward(given, dout, dstate, (dx, ddt, dB, dC))

    def _scan_backward(
        self, given: Scan, dout: Tensor, dstate: Tensor | None, targets: core.ScanTargets
    ) -> ScanGradients:
        dx, ddt, dB, dC = targets
        _, _, dA, _, _, dD, _, ddt_bias, dinitial_states, *_ = self._upstream.backward(
            dout,
            *(given.x, given.dt, given.A, given.B, given.C),
            # Without z, nothing but its shape is looked at.
            given.x,
            given.chunk_size,
            D=given.D,
            dt_bias=given.dt_bias,
            initial_states=given.initial_states,
            dfinal_states=dstate,
            seq_idx=given.seq_idx,
            dt_softplus=given.dt_softplus,
            dt_limit=given.dt_limit,
            dx=dx,
            ddt=ddt,
            dB=dB,
            dC=dC,
            **_state_dtype(given),
        )

        def like(gradient: Tensor | None, argument: Tensor | None) -> Tensor | None:
            return None if argument is None or gradient is None else gradient.to(argument.dtype)

        return ScanGradients(
            dx,
            ddt,
            dA.to(given.A.dtype),
            dB,
            dC,
            like(dD, given.D),
            like(ddt_bias, given.dt_bias),
            like(dinitial_states, given.initial_states),
        )

    def mixer_forward(self, given: Mixer) -> tuple[Tensor, Tensor]:
        whole = given.zxbcdt
        projection_dtype = autocast_dtype(whole.device)
        with without_autocast(whole.device):
            columns = split_columns(given, whole)
            out, state, *_ = self._mixed(given, convolved(given, columns))
            if columns.mlp.shape[-1] > 0:
                out = torch.cat([swiglu(columns.mlp).to(out.dtype), out], dim=-1)
            return project(given, out, projection_dtype), state

    def core_forward(self, given: Mixer) -> Core:
        return core.forward(given, self._steps)

    def core_backward(
        self, given: Mixer, kept: Core, dout: Tensor, dstate: Tensor | None
    ) -> CoreGradients:
        return core.backward(given, kept, dout, dstate, self._steps)

    def _mixed(self, given: Mixer, xBC: Tensor) -> tuple[Tensor, ...]:
        """Of what follows the convolution: out, last state, and with a norm scanned and rstd."""
        columns = split_columns(given, given.zxbcdt)
        norm = norm_of(given)
        inner = inner_scan(given, columns, xBC, gated=norm is None)
        scanned, _, _, _, _, state = _forward(self._upstream, inner)
        out = scanned.flatten(2)
        if norm is None:
            return out, state
        normed, _, rstd = self._upstream.norm(
            out.flatten(0, 1),
            norm.weight.contiguous(),
            None,
            norm.eps,
            z=columns.z.flatten(0, 1),
            group_size=norm.group_size,
            norm_before_gate=norm.norm_before_gate,
            is_rms_norm=True,
        )
        return normed.view(out.shape), state, scanned, rstd

    def _after_convolution(
        self, given: Mixer, columns: Columns, xBC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        out, state, scanned, rstd = self._mixed(given, xBC)
        return out, state, scanned, rstd

    def _norm_backward(
        self, norm: GatedRMSNorm, kept: Core, z: Tensor, dout: Tensor, dz: Tensor
    ) -> tuple[Tensor, Tensor]:
        dscanned, dweight, *_ = self._upstream.norm_backward(
            dout.contiguous().flatten(0, 1),
            kept.scanned.view(-1, norm.weight.shape[0]),
            norm.weight.contiguous(),
            None,
            norm.eps,
            None,
            kept.rstd,
            z.flatten(0, 1),
            group_size=norm.group_size,
            norm_before_gate=norm.norm_before_gate,
            is_rms_norm=True,
            dz=dz.flatten(0, 1),
        )
        return dscanned.view(kept.scanned.shape), dweight


def _forward(upstream: _Upstream, given: Scan) -> Any:
    """out, out before the gate, steps, their cumulative sums, states, the last state; and more."""
    keywords = _state_dtype(given)
    if given.cu_seqlens is not None:
        keywords["cu_seqlens"] = given.cu_seqlens
    return upstream.forward(
        *(given.x, given.dt, given.A, given.B, given.C, given.chunk_size),
        D=given.D,
        z=given.z,
        dt_bias=given.dt_bias,
        initial_states=given.initial_states,
        seq_idx=given.seq_idx,
        dt_softplus=given.dt_softplus,
        dt_limit=given.dt_limit,
        **keywords,
    )


def _state_dtype(given: Scan) -> dict[str, Any]:
    """The keyword that only later releases know, where it is asked for."""
    return {} if given.state_dtype is None else {"state_dtype": given.state_dtype}
