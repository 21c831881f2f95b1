"""The ssd op in PyTorch, for every device: autograd around the chunked matrix products.

The mixer is one autograd function and not a chain of them: what it keeps is its input, the
scan's output and the states between blocks of chunks. Convolution, norm and gates are computed
again in the backward pass.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from jetson_mamba.ops.causal_conv1d import causal_conv1d_bwd, causal_conv1d_fn

from ..autocast import autocast_dtype, without_autocast
from . import chunks
from .contract import Case, Implementation, Mixer, Scan
from .gates import GatedRMSNorm, swiglu, swiglu_backward


def load(case: Case) -> Implementation:
    """The implementation; there is no device that it does not serve."""
    return Implementation(scan, mixer)


def scan(arguments: Scan, ends: list[int] | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, last state, and with ``ends`` the state at the end of each sequence."""
    out, state, states = _ScanFunction.apply(ends, *arguments)  # type: ignore[no-untyped-call]
    return out, state, states


def mixer(arguments: Mixer) -> tuple[Tensor, Tensor]:
    """Output after norm, gate and projection, and the last state of the scan."""
    out, state = _MixerFunction.apply(autocast_dtype(arguments.zxbcdt.device), *arguments)  # type: ignore[no-untyped-call]
    return out, state


class _ScanFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, ends: list[int] | None, *arguments: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        given = Scan(*arguments)
        out = torch.empty(given.x.shape, dtype=given.x.dtype, device=given.x.device)
        with without_autocast(given.x.device):
            state, kept = chunks.forward(given, out)
            states = None if ends is None else chunks.varlen_states(given, ends)
        ctx.set_materialize_grads(False)
        ctx.with_varlen_states = ends is not None
        ctx.options = given[10:]
        ctx.save_for_backward(*given[:10], *kept)
        return out, chunks.public_state(state, given), states

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dstate: Tensor | None, dstates: Tensor | None
    ) -> tuple[Any, ...]:
        if ctx.with_varlen_states:
            raise RuntimeError("return_varlen_states: a scan that returns them has no backward")
        given = Scan(*ctx.saved_tensors[:10], *ctx.options)
        if dout is None:
            dout = torch.zeros_like(given.x)
        targets = chunks.Targets(
            torch.empty_like(given.x),
            torch.empty_like(given.dt),
            torch.empty_like(given.B),
            torch.empty_like(given.C),
            None if given.z is None else torch.empty_like(given.z),
        )
        with without_autocast(given.x.device):
            others = chunks.backward(given, list(ctx.saved_tensors[10:]), dout, dstate, targets)
        return (
            None,
            targets.x,
            targets.dt,
            others.A,
            targets.B,
            targets.C,
            others.D,
            targets.z,
            others.dt_bias,
            others.initial_states,
            None,
            None,
            None,
        )


class _Columns(NamedTuple):
    """The parts of zxbcdt, or of its gradient: views."""

    mlp: Tensor
    z: Tensor
    conv: Tensor
    dt: Tensor


def _columns(given: Mixer, whole: Tensor) -> _Columns:
    nheads = given.A.shape[0]
    z, xBC = nheads * given.headdim, given.conv1d_weight.shape[0]
    mlp = whole.shape[-1] - z - xBC - nheads
    return _Columns(*torch.split(whole, [mlp, z, xBC, nheads], dim=-1))


def _split_heads(given: Mixer, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of (batch, seqlen, dim + 2 * ngroups * dstate) as the scan's x, B and C."""
    dim = given.A.shape[0] * given.headdim
    group_columns = (xBC.shape[-1] - dim) // 2
    x, B, C = torch.split(xBC, [dim, group_columns, group_columns], dim=-1)
    return (
        torch.unflatten(x, -1, (-1, given.headdim)),
        torch.unflatten(B, -1, (given.ngroups, -1)),
        torch.unflatten(C, -1, (given.ngroups, -1)),
    )


def _inner_scan(given: Mixer, columns: _Columns) -> Scan:
    """The scan inside a mixer: its x, B and C come out of the convolution."""
    convolved = causal_conv1d_fn(
        columns.conv.transpose(1, 2),
        given.conv1d_weight,
        given.conv1d_bias,
        seq_idx=given.seq_idx,
        activation=given.activation,
    ).transpose(1, 2)
    x, B, C = _split_heads(given, convolved)
    return Scan(
        x=x,
        dt=columns.dt,
        A=given.A,
        B=B,
        C=C,
        D=given.D,
        # With a norm, the gate belongs to it.
        z=torch.unflatten(columns.z, -1, (-1, given.headdim))
        if given.rmsnorm_weight is None
        else None,
        dt_bias=given.dt_bias,
        initial_states=given.initial_states,
        seq_idx=given.seq_idx,
        dt_softplus=True,
        dt_limit=given.dt_limit,
    )


def _norm(given: Mixer) -> GatedRMSNorm | None:
    if given.rmsnorm_weight is None:
        return None
    group_size = given.rmsnorm_weight.shape[0] // given.ngroups
    return GatedRMSNorm(given.rmsnorm_weight, given.rmsnorm_eps, group_size, given.norm_before_gate)


class _MixerFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, projection_dtype: torch.dtype | None, *arguments: Any
    ) -> tuple[Tensor, Tensor]:
        given = Mixer(*arguments)
        whole = given.zxbcdt
        columns = _columns(given, whole)
        norm = _norm(given)
        with without_autocast(whole.device):
            inner = _inner_scan(given, columns)
            scanned = torch.empty(columns.z.shape, dtype=whole.dtype, device=whole.device)
            last, kept = chunks.forward(inner, torch.unflatten(scanned, -1, (-1, given.headdim)))
            out = scanned
            if norm is not None:
                out = norm.forward(scanned, columns.z).to(whole.dtype)
            if columns.mlp.shape[-1] > 0:
                out = torch.cat([swiglu(columns.mlp).to(whole.dtype), out], dim=-1)
            if given.outproj_weight is not None:
                weight, bias = given.outproj_weight, given.outproj_bias
                if projection_dtype is not None:
                    out, weight = out.to(projection_dtype), weight.to(projection_dtype)
                    bias = None if bias is None else bias.to(projection_dtype)
                out = functional.linear(out, weight, bias)
        ctx.set_materialize_grads(False)
        ctx.options = given[11:]
        # Without a norm, what the gate was applied to is computed again beside the gradients.
        ctx.save_for_backward(*given[:11], None if norm is None else scanned, *kept)
        return out, chunks.public_state(last, inner)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor | None, dstate: Tensor | None) -> tuple[Any, ...]:
        given = Mixer(*ctx.saved_tensors[:11], *ctx.options)
        scanned, *kept = ctx.saved_tensors[11:]
        whole, weight = given.zxbcdt, given.outproj_weight
        columns = _columns(given, whole)
        dwhole = torch.empty_like(whole)
        dcolumns = _columns(given, dwhole)
        norm = _norm(given)
        mlp = columns.mlp.shape[-1] // 2
        drmsnorm = dweight = dbias = None

        with without_autocast(whole.device):
            # What the projection was given, filled in part by part where it is needed again.
            projected = whole.new_empty(*whole.shape[:2], mlp + columns.z.shape[-1])
            if dout is None:
                dprojected = torch.zeros_like(projected)
            elif weight is None:
                dprojected = dout
            else:
                dprojected = dout @ weight.to(dout.dtype)

            if mlp > 0:
                dmlp, recomputed = swiglu_backward(columns.mlp, dprojected[..., :mlp])
                dcolumns.mlp.copy_(dmlp)
                projected[..., :mlp] = recomputed
            dscanned = dprojected[..., mlp:]
            if norm is not None:
                dscanned, dgate, drmsnorm, recomputed = norm.backward(scanned, columns.z, dscanned)
                dcolumns.z.copy_(dgate)
                projected[..., mlp:] = recomputed

            inner = _inner_scan(given, columns)
            dxBC = torch.empty_like(columns.conv)
            dx, dB, dC = _split_heads(given, dxBC)
            dz = torch.unflatten(dcolumns.z, -1, (-1, given.headdim)) if norm is None else None
            others = chunks.backward(
                inner,
                kept,
                torch.unflatten(dscanned, -1, (-1, given.headdim)),
                dstate,
                chunks.Targets(dx, dcolumns.dt, dB, dC, dz),
                out=torch.unflatten(projected[..., mlp:], -1, (-1, given.headdim)),
            )
            if weight is not None and dout is not None:
                rows = dout.flatten(0, 1)
                dweight = rows.t() @ projected.to(dout.dtype).flatten(0, 1)
                dbias = None if given.outproj_bias is None else rows.sum(0)
            _, dconv_weight, dconv_bias, _ = causal_conv1d_bwd(
                columns.conv.transpose(1, 2),
                given.conv1d_weight,
                given.conv1d_bias,
                dxBC.transpose(1, 2),
                seq_idx=given.seq_idx,
                dx=dcolumns.conv.transpose(1, 2),
                activation=given.activation,
            )
        return (
            None,
            dwhole,
            dconv_weight,
            dconv_bias,
            others.dt_bias,
            others.A,
            others.D,
            others.initial_states,
            drmsnorm,
            dweight,
            dbias,
            *(None,) * 7,
        )
