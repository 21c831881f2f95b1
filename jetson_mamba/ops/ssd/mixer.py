"""A Mamba-2 mixer around its scan: the parts of its input, the steps beside the scan.

Every step is made of operations that PyTorch differentiates, so that :func:`compose` is a whole
mixer with gradients, given a scan that has them. Backends that fuse more take the steps one by
one, or as ``core`` has them.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.autocast import without_autocast
from jetson_mamba.dispatch.tracing import sizes, unflatten
from jetson_mamba.ops.causal_conv1d import causal_conv1d_fn

from .contract import Mixer, Scan
from .gates import GatedRMSNorm, gate, swiglu


class Columns(NamedTuple):
    """The parts of zxbcdt, or of its gradient: views (batch, seqlen, columns)."""

    mlp: Tensor
    z: Tensor
    conv: Tensor
    dt: Tensor


def mlp_columns(given: Mixer) -> int:
    """How many columns of zxbcdt are those of a gated MLP."""
    nheads, columns = sizes(given.A)[0], sizes(given.zxbcdt)[-1]
    return columns - nheads * given.headdim - sizes(given.conv1d_weight)[0] - nheads


def split_columns(given: Mixer, whole: Tensor) -> Columns:
    """The parts of a tensor that is laid out as zxbcdt."""
    nheads = sizes(given.A)[0]
    z, xBC = nheads * given.headdim, sizes(given.conv1d_weight)[0]
    return Columns(*torch.split(whole, [mlp_columns(given), z, xBC, nheads], dim=-1))


def split_heads(given: Mixer, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of (batch, seqlen, dim + 2 * ngroups * dstate) as the scan's x, B and C."""
    dim = sizes(given.A)[0] * given.headdim
    group_columns = (sizes(given.conv1d_weight)[0] - dim) // 2
    x, B, C = torch.split(xBC, [dim, group_columns, group_columns], dim=-1)
    return (
        unflatten(x, -1, (-1, given.headdim)),
        unflatten(B, -1, (given.ngroups, -1)),
        unflatten(C, -1, (given.ngroups, -1)),
    )


def convolved(given: Mixer, columns: Columns) -> Tensor:
    """The output of the convolution, (batch, seqlen, channels)."""
    out: Tensor = causal_conv1d_fn(
        columns.conv.transpose(1, 2),
        given.conv1d_weight,
        given.conv1d_bias,
        seq_idx=given.seq_idx,
        activation=given.activation,
    )
    return out.transpose(1, 2)


def inner_scan(given: Mixer, columns: Columns, xBC: Tensor, *, gated: bool) -> Scan:
    """The scan inside a mixer, of the convolution's output; with the gate z or without it."""
    x, B, C = split_heads(given, xBC)
    return Scan(
        x=x,
        dt=columns.dt,
        A=given.A,
        B=B,
        C=C,
        D=given.D,
        z=unflatten(columns.z, -1, (-1, given.headdim)) if gated else None,
        dt_bias=given.dt_bias,
        initial_states=given.initial_states,
        seq_idx=given.seq_idx,
        cu_seqlens=None,
        chunk_size=given.chunk_size,
        dt_softplus=True,
        dt_limit=given.dt_limit,
        state_dtype=given.state_dtype,
        last_state=given.last_state,
    )


def norm_of(given: Mixer) -> GatedRMSNorm | None:
    """The norm that takes the gate; without one, the gate belongs to the scan."""
    if given.rmsnorm_weight is None:
        return None
    group_size = sizes(given.rmsnorm_weight)[0] // given.ngroups
    return GatedRMSNorm(given.rmsnorm_weight, given.rmsnorm_eps, group_size, given.norm_before_gate)


def project(given: Mixer, out: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The output projection, in the dtype of autocast where there is one."""
    weight, bias = given.outproj_weight, given.outproj_bias
    if weight is None:
        return out
    if dtype is not None:
        out, weight = out.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    return functional.linear(out, weight, bias)


def compose(
    given: Mixer,
    scan: Callable[[Scan], tuple[Tensor, Tensor]],
    projection_dtype: torch.dtype | None,
    norm_module: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """A mixer around ``scan``, which takes no z: its output and the last state.

    ``projection_dtype`` is that of autocast, None where it is off. ``norm_module`` is called with
    the scan's output and z, where there is no rmsnorm_weight.
    """
    whole = given.zxbcdt
    columns = split_columns(given, whole)
    norm = norm_of(given)
    normalise = norm_module or (gate if norm is None else norm.forward)
    with without_autocast(whole.device):
        inner = inner_scan(given, columns, convolved(given, columns), gated=False)
        scanned, state = scan(inner)
        out = scanned.flatten(2)
        out = normalise(out, columns.z)
        out = out.to(whole.dtype)
        if mlp_columns(given) > 0:
            out = torch.cat([swiglu(columns.mlp).to(whole.dtype), out], dim=-1)
        return project(given, out, projection_dtype), state
