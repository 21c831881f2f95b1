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
from jetson_mamba.ops.causal_conv1d import causal_conv1d_bwd, causal_conv1d_fn
from jetson_mamba.ops.causal_conv1d.op import (
    backward_unchecked,
    forward_unchecked,
    serves_unchecked,
)

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
    nheads, xBC = sizes(given.A)[0], sizes(given.conv1d_weight)[0]
    z = nheads * given.headdim
    mlp = sizes(whole)[-1] - z - xBC - nheads
    return Columns._make(torch.split_with_sizes(whole, (mlp, z, xBC, nheads), -1))


def split_heads(given: Mixer, xBC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of (batch, seqlen, dim + 2 * ngroups * dstate) as the scan's x, B and C."""
    dim = sizes(given.A)[0] * given.headdim
    group_columns = (sizes(given.conv1d_weight)[0] - dim) // 2
    x, B, C = torch.split_with_sizes(xBC, (dim, group_columns, group_columns), -1)
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


def convolved_by_kernels(given: Mixer, columns: Columns) -> Tensor:
    """The same without a graph, where nothing but numbers is asked for, of a mixer that fits."""
    weight, bias = given.conv1d_weight, given.conv1d_bias
    if not serves_unchecked(weight, bias, given.seq_idx):
        return convolved(given, columns)
    x = columns.conv.transpose(1, 2)
    out = forward_unchecked(x, weight, bias, given.seq_idx, given.activation is not None)
    return out.transpose(1, 2)


def convolved_back(
    given: Mixer, columns: Columns, dxBC: Tensor, dcolumns: Columns
) -> tuple[Tensor, Tensor | None]:
    """The gradients of the convolution's weight and bias; that of its input goes to its column."""
    x, dx = columns.conv.transpose(1, 2), dcolumns.conv.transpose(1, 2)
    weight, bias, seq_idx = given.conv1d_weight, given.conv1d_bias, given.seq_idx
    dout = dxBC.transpose(1, 2)
    if serves_unchecked(weight, bias, seq_idx):
        silu = given.activation is not None
        return backward_unchecked(x, weight, bias, dout, seq_idx, dx, silu)
    _, dweight, dbias, _ = causal_conv1d_bwd(
        x, weight, bias, dout, seq_idx=seq_idx, dx=dx, activation=given.activation
    )
    return dweight, dbias


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
