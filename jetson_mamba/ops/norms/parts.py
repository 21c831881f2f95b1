"""The functions under the norms that programs launch by themselves, where Triton cannot run.

They take the places of ``_layer_norm_fwd`` of mamba-ssm's ``layer_norm``, ``layernorm`` and
``layernorm_gated``, and of ``_layer_norm_bwd`` of the last, over rows (rows, dim), in at least
float32. Statistics are as upstream's: one a row and group, those of a group one after another.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.autocast import compute_dtype

from .op import layernorm_fn


def gated_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    z: Tensor | None = None,
    out: Tensor | None = None,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """``layernorm_fn`` into ``out`` if it is given; with the mean and 1 / deviation of each row.

    The mean is None for a norm by the root mean square.
    """
    with torch.no_grad():
        options = (z, eps, group_size, norm_before_gate, is_rms_norm)
        result = layernorm_fn(x, weight, bias, *options)
        if out is not None:
            result = out.copy_(result)
        wide = x.to(compute_dtype(x, weight, bias, z))
        if z is not None and not norm_before_gate:
            wide = wide * functional.silu(z.to(wide.dtype))
        grouped = torch.unflatten(wide, -1, (-1, group_size or x.shape[-1]))
        return result, *_statistics(grouped, eps, is_rms_norm)


def gated_norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    mean: Tensor | None,
    rstd: Tensor,
    z: Tensor | None = None,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
    recompute_output: bool = False,
    dz: Tensor | None = None,
    out: Tensor | None = None,
) -> tuple[Tensor | None, ...]:
    """The gradients of x, weight, bias and z, None for what was not given; ``dz`` into that.

    With ``recompute_output`` the output too, into ``out`` if it is given. The statistics are
    computed again.
    """
    given = (x, weight, bias, z)
    dtype = compute_dtype(*given)
    leaves = [None if each is None else each.detach().to(dtype) for each in given]
    for leaf in leaves:
        if leaf is not None:
            leaf.requires_grad_()
    wide_x, wide_weight, wide_bias, wide_z = leaves
    assert wide_x is not None and wide_weight is not None
    with torch.enable_grad():
        options = (eps, group_size, norm_before_gate, is_rms_norm)
        result = layernorm_fn(wide_x, wide_weight, wide_bias, wide_z, *options)
        inputs = [each for each in leaves if each is not None]
        found = iter(torch.autograd.grad(result, inputs, dy.to(dtype)))
    dx, dweight, dbias, gate = (
        None if each is None else next(found).to(each.dtype) for each in given
    )
    if dz is not None and gate is not None:
        gate = dz.copy_(gate)
    if not recompute_output:
        return dx, dweight, dbias, gate
    output = result.detach().to(x.dtype)
    return (dx, dweight, dbias, gate, output if out is None else out.copy_(output))


def norm_forward_of_1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    is_rms_norm: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """The norm of ``x + residual``, its mean and 1 / deviation, and the sum, which may be x."""
    out, _, mean, rstd, total, *_ = norm_forward(
        *(x, weight, bias, eps, residual),
        out_dtype=out_dtype,
        residual_dtype=residual_dtype,
        is_rms_norm=is_rms_norm,
    )
    return out, mean, rstd, total


def norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
    residual_dtype: torch.dtype | None = None,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> tuple[Any, ...]:
    """The norm of ``x * rowscale + x1 + residual`` by both weights, and its statistics.

    Returns the two outputs, the mean, 1 / deviation, the sum (x itself if it would be that), and
    the seeds and masks of dropout, which are None.

    Raises ValueError for dropout: its seeds mean something to upstream's kernels alone.
    """
    if dropout_p:
        raise ValueError(f"dropout_p: expected 0 without upstream's kernels, found {dropout_p}")
    with torch.no_grad():
        dtype = compute_dtype(x, weight, bias, residual, x1, weight1, bias1)
        total = x.to(dtype)
        if rowscale is not None:
            total = total * rowscale.unsqueeze(-1)
        for other in (x1, residual):
            if other is not None:
                total = total + other
        mean, rstd = _statistics(total.unsqueeze(-2), eps, is_rms_norm)
        normed = (total if mean is None else total - mean.unsqueeze(-1)) * rstd.unsqueeze(-1)
        outputs = [
            None
            if each is None
            else (normed * each if shift is None else normed * each + shift).to(
                x.dtype if out_dtype is None else out_dtype
            )
            for each, shift in ((weight, bias), (weight1, bias1))
        ]
        total_dtype = residual.dtype if residual is not None else residual_dtype or x.dtype
        same = x1 is None and rowscale is None and residual is None and total_dtype == x.dtype
        return (*outputs, mean, rstd, x if same else total.to(total_dtype), None, None, None)


def _statistics(grouped: Tensor, eps: float, is_rms_norm: bool) -> tuple[Tensor | None, Tensor]:
    """The mean and 1 / deviation of (rows, groups, channels): (groups * rows,)."""
    mean = None if is_rms_norm else grouped.mean(-1)
    centred = grouped if mean is None else grouped - mean.unsqueeze(-1)
    rstd = torch.rsqrt(centred.square().mean(-1) + eps).t().flatten()
    return None if mean is None else mean.t().flatten(), rstd
