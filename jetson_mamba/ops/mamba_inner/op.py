"""Everything of a Mamba block after its input projection, without an autograd function around it.

This is what ``mamba_inner_fn`` of ``mamba_ssm.ops.selective_scan_interface`` computes, for the
calls that ``paths`` leads past upstream's ``MambaInnerFn``: those that a graph is traced of, and
those that need no gradient. The latter are launched by a CUDA graph where they are small.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, Mapping, NamedTuple, cast

import torch
from torch import Tensor, nn

from jetson_mamba.dispatch.autocast import autocast_dtype
from jetson_mamba.dispatch.paths import may_replay, through_autograd, without_gradients
from jetson_mamba.dispatch.projections import may_be_fused, passed
from jetson_mamba.replay.captured import Captured, Weights

from ..causal_conv1d import causal_conv1d_fn
from ..selective_scan import selective_scan_fn


def mamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
    checkpoint_lvl: int = 1,
    b_rms_weight: Tensor | None = None,
    c_rms_weight: Tensor | None = None,
    dt_rms_weight: Tensor | None = None,
    b_c_dt_rms_eps: float = 1e-6,
) -> Tensor:
    """Convolve, project to step sizes, B and C, scan, and project back: Gu and Dao 2023, figure 3.

    With rank the columns of delta_proj_weight, and dstate the states of A (two numbers each where
    A is complex):

    * ``xz`` (batch, 2 * dim, seqlen): the signal and its gate
    * ``conv1d_weight`` (dim, 1, width), ``conv1d_bias`` (dim,) or None
    * ``x_proj_weight`` (rank + 2 * dstate, dim), ``delta_proj_weight`` (dim, rank)
    * ``out_proj_weight`` (d_model, dim), ``out_proj_bias`` (d_model,) or None
    * ``A`` (dim, dstate); ``B`` and ``C`` as ``selective_scan_fn`` takes them, or None: then they
      come out of the projection, with ``B_proj_bias``, ``C_proj_bias`` (dstate,) added
    * ``D``, ``delta_bias`` (dim,) or None
    * ``b_rms_weight``, ``c_rms_weight`` (dstate,), ``dt_rms_weight`` (dim,): where given, B, C or
      the step sizes are normalised by their root mean square first

    ``checkpoint_lvl`` says what an autograd function would keep, and does nothing here. Returns
    (batch, seqlen, d_model), in the dtype of autocast where it is on.

    Projections of the caller that are no plain modules are called in place of their weights, and a
    caller that would rather compute by its modules itself is given None: see ``projections``.

    Raises ValueError, TypeError or RuntimeError for shapes and dtypes that do not fit.
    """
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"checkpoint_lvl: expected 0 or 1, found {checkpoint_lvl}")
    weights = (
        conv1d_weight,
        conv1d_bias,
        x_proj_weight,
        delta_proj_weight,
        out_proj_weight,
        out_proj_bias,
        B_proj_bias,
        C_proj_bias,
        b_rms_weight,
        c_rms_weight,
        dt_rms_weight,
    )
    options = (delta_softplus, b_c_dt_rms_eps)
    by_modules = passed(
        x_proj=x_proj_weight,
        dt_proj=delta_proj_weight,
        out_proj=out_proj_weight,
        dt_rms=dt_rms_weight,
    )
    if by_modules is not None:
        if by_modules.declined:
            return cast(Tensor, None)
        return _composed(_Inner(xz, A, D, delta_bias, *weights, B, C, *options), by_modules.modules)
    # Whatever the way, the whole is made of operations and of ops that take that way by themselves.
    if not (
        xz.is_cuda
        and B is None
        and C is None
        and without_gradients(xz, A, *weights)
        and may_replay()
    ):
        return _composed(_Inner(xz, A, D, delta_bias, *weights, B, C, *options))
    (out,) = _CAPTURED(
        # A block makes these anew for each call.
        tuple([each for each in (xz, A, D, delta_bias) if each is not None]),
        weights,
        *(D is not None, delta_bias is not None, *options),
        autocast_dtype(xz.device),
    )
    return out


def through_inner_autograd(
    xz: Tensor,
    x_proj_weight: Any,
    delta_proj_weight: Any,
    out_proj_weight: Any,
    out_proj_bias: Any = None,
    dt_rms_weight: Any = None,
    **_: Any,
) -> bool:
    """Whether a call goes through upstream's ``MambaInnerFn``, which knows no modules.

    Nor can it give the gradient of a bias of the output projection: it sums over one dimension
    more than there is left. The arguments are those of :func:`mamba_inner_fn`.
    """
    return (
        through_autograd(xz)
        and not getattr(out_proj_bias, "requires_grad", False)
        and may_be_fused(
            x_proj=x_proj_weight,
            dt_proj=delta_proj_weight,
            out_proj=out_proj_weight,
            dt_rms=dt_rms_weight,
        )
    )


_NONE: Mapping[str, nn.Module] = MappingProxyType({})


class _Inner(NamedTuple):
    """The arguments of the whole: what a block makes for each call, its weights, and the rest."""

    xz: Tensor
    A: Tensor
    D: Tensor | None
    delta_bias: Tensor | None
    conv1d_weight: Tensor
    conv1d_bias: Tensor | None
    x_proj_weight: Tensor
    delta_proj_weight: Tensor
    out_proj_weight: Tensor
    out_proj_bias: Tensor | None
    B_proj_bias: Tensor | None
    C_proj_bias: Tensor | None
    b_rms_weight: Tensor | None
    c_rms_weight: Tensor | None
    dt_rms_weight: Tensor | None
    B: Tensor | None
    C: Tensor | None
    delta_softplus: bool
    eps: float


def _from_parts(
    inputs: tuple[Tensor, ...],
    weights: Weights,
    has_D: bool,
    has_delta_bias: bool,
    delta_softplus: bool,
    eps: float,
    dtype: torch.dtype | None,
) -> tuple[Tensor]:
    """The function that is captured; ``dtype`` is that of autocast."""
    xz, A, *vectors = inputs
    D = vectors.pop(0) if has_D else None
    delta_bias = vectors.pop(0) if has_delta_bias else None
    fields: list[Any] = [xz, A, D, delta_bias, *weights, None, None, delta_softplus, eps]
    inner = _Inner(*fields)
    if dtype is None:
        return (_composed(inner),)
    # What autocast keeps of a cast weight it frees at its end; a graph would go on reading it.
    with torch.autocast(xz.device.type, dtype, cache_enabled=False):
        return (_composed(inner),)


_CAPTURED = Captured(_from_parts)


def _composed(inner: _Inner, modules: Mapping[str, nn.Module] = _NONE) -> Tensor:
    """The whole computation, in operations that PyTorch differentiates.

    ``modules`` are those of ``x_proj``, ``dt_proj`` and ``out_proj`` that are to be called.
    """
    A, B, C = inner.A, inner.B, inner.C
    x, z = inner.xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, inner.conv1d_weight.squeeze(1), inner.conv1d_bias, activation="silu")
    # Time stays the last dimension throughout, which the scan wants; so nothing is transposed.
    projected = _project(inner.x_proj_weight, x, modules.get("x_proj"))
    dstate = A.shape[1] * (2 if A.is_complex() else 1)
    if "dt_proj" in modules:  # Its weight need not have a shape.
        rank = projected.shape[1] - dstate * ((B is None) + (C is None))
    else:
        rank = inner.delta_proj_weight.shape[1]
    delta = _project(inner.delta_proj_weight, projected[:, :rank], modules.get("dt_proj"))
    if B is None:
        B = _variable(projected[:, rank : rank + dstate], inner.B_proj_bias, A.is_complex())
    if C is None:
        C = _variable(projected[:, -dstate:], inner.C_proj_bias, A.is_complex())
    if inner.b_rms_weight is not None:
        B = _normalised(B, inner.b_rms_weight, inner.eps)
    if inner.c_rms_weight is not None:
        C = _normalised(C, inner.c_rms_weight, inner.eps)
    if inner.dt_rms_weight is not None:
        delta = _normalised(delta, inner.dt_rms_weight, inner.eps)
    # A module has added its bias.
    delta_bias = None if "dt_proj" in modules else inner.delta_bias
    y = selective_scan_fn(x, delta, A, B, C, inner.D, z, delta_bias, inner.delta_softplus)
    y = cast(Tensor, y).transpose(1, 2)
    if "out_proj" in modules:
        return cast(Tensor, modules["out_proj"](y))
    weight = inner.out_proj_weight.t().expand(y.shape[0], -1, -1)
    if inner.out_proj_bias is None:
        return torch.bmm(y, weight)
    return torch.baddbmm(inner.out_proj_bias, y, weight)


def _project(weight: Tensor, x: Tensor, module: nn.Module | None) -> Tensor:
    """(channels, dim) times (batch, dim, seqlen); torch.matmul would copy x to fold the batch."""
    if module is not None:
        return cast(Tensor, module(x.transpose(1, 2))).transpose(1, 2)
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


def _variable(rows: Tensor, bias: Tensor | None, is_complex: bool) -> Tensor:
    """B or C for the scan, (batch, 1, dstate, width), out of rows of the projection."""
    if bias is not None:
        rows = rows + bias.to(rows.dtype).unsqueeze(-1)
    if is_complex:
        # The real and the imaginary part of a state are neighbours, and become those of a step.
        batch, pairs, seqlen = rows.shape
        rows = rows.reshape(batch, pairs // 2, 2, seqlen).transpose(2, 3).flatten(2)
    return rows.unsqueeze(1)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., n, seqlen) over the root mean square of its n rows, times weight (n,)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-2, keepdim=True) + eps)
    return (wide * scale * weight.float().unsqueeze(-1)).to(x.dtype)
