"""The norms around or inside the blocks, past upstream's autograd functions.

They take the place of the functions of the same names in ``mamba_ssm.ops.triton.layer_norm``
(``layernorm`` in 1.x) and ``layernorm_gated`` wherever :func:`through_norm_autograd` is false. On
a GPU they run on this project's CUDA kernels. Where something traces or transforms, a compiler of
which fuses them, and elsewhere they are plain tensor operations. All compute in at least float32,
and return the dtype of ``x``.
"""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.arguments import check_alike
from jetson_mamba.dispatch.autocast import compute_dtype
from jetson_mamba.dispatch.paths import Way, way
from jetson_mamba.dispatch.tracing import sizes, unflatten
from jetson_mamba.dispatch.triton_runs import triton_runs_on

from . import autograd
from .contract import Gate, Implementation, Options
from .serving import kernels_for

# What a norm may have besides, of which the kernels know nothing.
_BESIDE = ("x1", "weight1", "bias1", "rowscale", "linear_weight")


def through_norm_autograd(x: Tensor, **given: Any) -> bool:
    """Whether a norm is upstream's function: its Triton kernels run, and none of ours serves.

    ``given`` are the other arguments of that function. What neither computes in, as float64, and
    what is wrong, are left to the op.
    """
    if not isinstance(x, Tensor) or way(x) is not Way.KERNELS or not triton_runs_on(x.device):
        return False
    if given.get("dropout_p") or any(given.get(name) is not None for name in _BESIDE):
        return True
    weight, bias, group = given["weight"], given["bias"], given.get("group_size") or x.shape[-1]
    added = given.get("residual", given.get("z"))
    tensors = (weight, bias, added)
    if not all(isinstance(each, (Tensor, type(None))) for each in tensors) or weight is None:
        return False
    if compute_dtype(x, *tensors) != torch.float32 or group < 1 or x.shape[-1] % group:
        return False
    return _kernels(x, weight, bias, group, added, gated="z" in given) is None


def layer_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """``norm(dropout(x * rowscale) + dropout(x1) + residual) * weight + bias``.

    x, x1 and residual are (..., dim); weight, bias, weight1 and bias1 (dim,); rowscale (...). The
    norm is that of a LayerNorm, or with ``is_rms_norm`` the root mean square.

    Returns the output; with weight1 a second one, of the same sum by weight1 and bias1; with
    ``prenorm`` the sum, in the dtype of the residual (without one: float32 with
    ``residual_in_fp32``, else that of x); with ``return_dropout_mask`` what dropout kept of x and
    of x1, bool, each None where nothing was dropped. A tuple where there is more than the output.

    Raises ValueError for shapes that do not fit, and for rowscale beside x1.
    """
    return layer_norm(
        *(x, weight, bias, residual, x1, weight1, bias1, eps, dropout_p, rowscale, prenorm),
        *(residual_in_fp32, is_rms_norm, return_dropout_mask),
    )


def layer_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
    return_dropout_mask: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """:func:`layer_norm_fn` with outputs of a ``dtype`` that is not that of x."""
    out_dtype = x.dtype if dtype is None else dtype
    shape = sizes(x)
    dim = shape[-1]
    check_alike("weight", weight, (dim,), "(dim,)")
    if residual is not None:
        check_alike("residual", residual, shape, "the shape of x")
    if bias is not None:
        check_alike("bias", bias, (dim,), "(dim,)")
    if x1 is not None:
        check_alike("x1", x1, shape, "the shape of x")
    if weight1 is not None:
        check_alike("weight1", weight1, (dim,), "(dim,)")
    if bias1 is not None:
        check_alike("bias1", bias1, (dim,), "(dim,)")
    if rowscale is not None and x1 is not None:
        raise ValueError("rowscale: expected None beside x1, found a tensor")
    wide = compute_dtype(x, weight, bias, residual, x1, weight1, bias1)
    if residual is not None:
        total_dtype = residual.dtype
    else:
        total_dtype = torch.float32 if residual_in_fp32 else x.dtype
    tensors = (x, weight, bias, residual, x1, weight1, bias1, rowscale)
    is_plain = dropout_p == 0.0 and out_dtype == x.dtype and wide == torch.float32
    if is_plain and x1 is None and weight1 is None and rowscale is None:
        kernels = _kernels(x, weight, bias, dim, residual)
        if kernels is not None:
            # Where there is no sum, it is x itself.
            keeps = prenorm and (residual is not None or total_dtype != x.dtype)
            out, total = autograd.normed(
                kernels,
                _composed_norm(eps, is_rms_norm),
                autograd.Terms(x, residual, None, weight, bias),
                total_dtype if keeps else None,
                Options(eps, dim, is_rms_norm),
            )
            found = [out, x if total is None else total] if prenorm else [out]
            return _together(found, [None, None] if return_dropout_mask else [])
    return _plain_norm(
        *(tensors, wide, total_dtype, out_dtype, eps, dropout_p, prenorm, is_rms_norm),
        return_dropout_mask,
    )


def _plain_norm(
    tensors: tuple[Tensor | None, ...],
    wide: torch.dtype,
    total_dtype: torch.dtype,
    out_dtype: torch.dtype,
    eps: float,
    dropout_p: float,
    prenorm: bool,
    is_rms_norm: bool,
    return_dropout_mask: bool,
) -> Any:
    """:func:`layer_norm` as tensor operations that torch differentiates."""
    x, weight, bias, residual, x1, weight1, bias1, rowscale = tensors
    assert x is not None and weight is not None
    total = x.to(wide)
    if rowscale is not None:
        total = total * rowscale.reshape(x.shape[:-1]).unsqueeze(-1)
    total, kept = _dropout(total, dropout_p)
    kept1 = None
    if x1 is not None:
        other, kept1 = _dropout(x1.to(wide), dropout_p)
        total = total + other
    if residual is not None:
        total = total + residual
    normed = _normalised(total, eps, is_rms_norm)
    results: list[Any] = [_affine(normed, weight, bias).to(out_dtype)]
    if weight1 is not None:
        results.append(_affine(normed, weight1, bias1).to(out_dtype))
    if prenorm:
        results.append(total.to(total_dtype))
    return _together(results, [kept, kept1] if return_dropout_mask else [])


def rms_norm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    rowscale: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    return_dropout_mask: bool = False,
) -> Any:
    """:func:`layer_norm_fn` by the root mean square."""
    return layer_norm_fn(
        x,
        weight,
        bias,
        residual=residual,
        x1=x1,
        weight1=weight1,
        bias1=bias1,
        eps=eps,
        dropout_p=dropout_p,
        rowscale=rowscale,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=True,
        return_dropout_mask=return_dropout_mask,
    )


def rms_norm_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float = 1e-6,
    is_rms_norm: bool = True,
) -> Tensor:
    """:func:`layer_norm_fn` of x (rows, dim) alone, as ``MambaInnerFn`` norms dt, B and C."""
    out: Tensor = layer_norm(x, weight, bias, eps=eps, is_rms_norm=is_rms_norm)
    return out


def layer_norm_again(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    x1: Tensor | None = None,
    weight1: Tensor | None = None,
    bias1: Tensor | None = None,
    eps: float = 1e-6,
    dropout_p: float = 0.0,
    *others: Any,
) -> Any:
    """:func:`layer_norm_fn`, to be differentiated once more where its results are there already.

    Raises RuntimeError where they have dropout, since what it kept cannot be repeated.
    """
    if dropout_p:
        raise RuntimeError(
            "dropout_p: expected 0 where a second derivative of the norm is asked for, found "
            f"{dropout_p}; apply torch.nn.functional.dropout before the norm"
        )
    return layer_norm(x, weight, bias, residual, x1, weight1, bias1, eps, 0.0, *others)


def layer_norm_of_1(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """:func:`layer_norm_fn` with the parameters of 1.x in their order."""
    return layer_norm(
        *(x, weight, bias, residual),
        eps=eps,
        prenorm=prenorm,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
    )


def layernorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
    is_rms_norm: bool = False,
) -> Tensor:
    """``(norm(x) * weight + bias) * silu(z)``, or the norm of ``x * silu(z)``.

    x and z are (..., dim), z may be None; weight and bias (dim,), bias may be None. The norm is
    taken over each run of ``group_size`` channels, all of them if it is None.

    Raises ValueError for shapes that do not fit.
    """
    shape = sizes(x)
    dim = shape[-1]
    if z is not None:
        check_alike("z", z, shape, "the shape of x")
    check_alike("weight", weight, (dim,), "(dim,)")
    if bias is not None:
        check_alike("bias", bias, (dim,), "(dim,)")
    group_size = dim if group_size is None else group_size
    if group_size < 1 or dim % group_size:
        raise ValueError(f"group_size: expected a divisor of dim={dim}, found {group_size}")
    kernels = None
    if compute_dtype(x, weight, bias, z) == torch.float32:
        kernels = _kernels(x, weight, bias, group_size, z, gated=True)
    if kernels is not None:
        gate = Gate.NONE if z is None else Gate.OUTPUT if norm_before_gate else Gate.INPUT
        return autograd.normed(
            kernels,
            lambda x, _, z, weight, bias: (
                _plain_gated(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm),
                None,
            ),
            autograd.Terms(x, None, z, weight, bias),
            None,
            Options(eps, group_size, is_rms_norm, gate),
        )[0]
    return _plain_gated(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm)


def _plain_gated(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None,
    eps: float,
    group_size: int,
    norm_before_gate: bool,
    is_rms_norm: bool,
) -> Tensor:
    """:func:`layernorm_fn` as tensor operations that torch differentiates."""
    dtype = compute_dtype(x, weight, bias, z)
    wide = x.to(dtype)
    gate = None if z is None else functional.silu(z.to(dtype))
    if gate is not None and not norm_before_gate:
        wide = wide * gate
    grouped = unflatten(wide, -1, (-1, group_size))
    out = _affine(_normalised(grouped, eps, is_rms_norm).flatten(-2), weight, bias)
    if gate is not None and norm_before_gate:
        out = out * gate
    return out.to(x.dtype)


def rmsnorm_fn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    z: Tensor | None = None,
    eps: float = 1e-6,
    group_size: int | None = None,
    norm_before_gate: bool = True,
) -> Tensor:
    """:func:`layernorm_fn` by the root mean square."""
    return layernorm_fn(x, weight, bias, z, eps, group_size, norm_before_gate, is_rms_norm=True)


def _kernels(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    group: int,
    added: Tensor | None,
    gated: bool = False,
) -> Implementation | None:
    """The CUDA kernels, where they serve: ``added`` is a residual or, with ``gated``, z."""
    if not x.is_cuda or (bias is not None and bias.dtype != weight.dtype):
        return None
    if gated and added is not None and added.dtype != x.dtype:
        return None
    needs_backward = torch.is_grad_enabled()
    return kernels_for(x, weight, group, bias, added, needs_backward=needs_backward)


def _composed_norm(eps: float, is_rms_norm: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    """The output and the sum, unrounded, as ``autograd.normed`` asks for them."""

    def composed(x: Tensor, residual: Any, _: Any, weight: Tensor, bias: Any) -> Any:
        tensors = (x, weight, bias, residual, None, None, None, None)
        wide = compute_dtype(x, weight, bias, residual)
        return _plain_norm(tensors, wide, wide, x.dtype, eps, 0.0, True, is_rms_norm, False)

    return composed


def _together(results: list[Any], masks: list[Any]) -> Any:
    """A tuple of all; the output alone if there is no more."""
    return results[0] if len(results) == 1 and not masks else (*results, *masks)


def _normalised(x: Tensor, eps: float, is_rms_norm: bool) -> Tensor:
    """x over its root mean square along the last axis, or over its deviation from the mean."""
    if not is_rms_norm:
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def _affine(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x * weight if bias is None else x * weight + bias


def _dropout(x: Tensor, p: float) -> tuple[Tensor, Tensor | None]:
    """What is left of x, scaled to the same mean, and where that is."""
    if p == 0.0:
        return x, None
    if not 0.0 <= p < 1.0:
        raise ValueError(f"dropout_p: expected at least 0 and less than 1, found {p}")
    kept = torch.rand_like(x) >= p
    return x.masked_fill(~kept, 0.0) / (1.0 - p), kept
