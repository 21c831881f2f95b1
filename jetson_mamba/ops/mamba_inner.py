"""Everything of a Mamba block after its input projection, without an autograd function around it.

This is what ``mamba_inner_fn`` of ``mamba_ssm.ops.selective_scan_interface`` computes, for the
calls that ``paths`` leads past upstream's ``MambaInnerFn``: those that a graph is traced of, and
those that need no gradient.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from .causal_conv1d import causal_conv1d_fn
from .selective_scan import selective_scan_fn


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

    Raises ValueError, TypeError or RuntimeError for shapes and dtypes that do not fit.
    """
    if checkpoint_lvl not in (0, 1):
        raise ValueError(f"checkpoint_lvl: expected 0 or 1, found {checkpoint_lvl}")
    x, z = xz.chunk(2, dim=1)
    x = causal_conv1d_fn(x, conv1d_weight.squeeze(1), conv1d_bias, activation="silu")
    # Time stays the last dimension throughout, which the scan wants; so nothing is transposed.
    projected = _project(x_proj_weight, x)
    delta = _project(delta_proj_weight, projected[:, : delta_proj_weight.shape[1]])
    dstate = A.shape[1] * (2 if A.is_complex() else 1)
    if B is None:
        first = delta_proj_weight.shape[1]
        B = _variable(projected[:, first : first + dstate], B_proj_bias, A.is_complex())
    if C is None:
        C = _variable(projected[:, -dstate:], C_proj_bias, A.is_complex())
    if b_rms_weight is not None:
        B = _normalised(B, b_rms_weight, b_c_dt_rms_eps)
    if c_rms_weight is not None:
        C = _normalised(C, c_rms_weight, b_c_dt_rms_eps)
    if dt_rms_weight is not None:
        delta = _normalised(delta, dt_rms_weight, b_c_dt_rms_eps)
    y = cast(Tensor, selective_scan_fn(x, delta, A, B, C, D, z, delta_bias, delta_softplus))
    weight = out_proj_weight.t().expand(y.shape[0], -1, -1)
    if out_proj_bias is None:
        return torch.bmm(y.transpose(1, 2), weight)
    return torch.baddbmm(out_proj_bias, y.transpose(1, 2), weight)


def _project(weight: Tensor, x: Tensor) -> Tensor:
    """(channels, dim) times (batch, dim, seqlen); torch.matmul would copy x to fold the batch."""
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


def _variable(rows: Tensor, bias: Tensor | None, is_complex: bool) -> Tensor:
    """B or C for the scan, (batch, 1, dstate, width), out of rows of the projection."""
    if bias is not None:
        rows = rows + bias.to(rows.dtype).unsqueeze(-1)
    if is_complex:
        # The real and the imaginary part of a state are neighbours, and become those of a step.
        rows = rows.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2)
    return rows.unsqueeze(1)


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """(..., n, seqlen) over the root mean square of its n rows, times weight (n,)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-2, keepdim=True) + eps)
    return (wide * scale * weight.float().unsqueeze(-1)).to(x.dtype)
