"""A norm with the projection after it, past upstream's autograd function.

Takes the place of the function of the same name in ``mamba_ssm.ops.triton.layer_norm``
(``layernorm`` in 1.x) wherever ``norms.through_norm_autograd`` is false.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.autocast import autocast_dtype, without_autocast

from .op import layer_norm


def layer_norm_linear_fn(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    residual: Tensor | None = None,
    eps: float = 1e-6,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    is_rms_norm: bool = False,
) -> Any:
    """``linear(norm(x + residual) * norm_weight + norm_bias)``.

    x and residual are (..., dim); norm_weight and norm_bias (dim,); linear_weight (out_dim, dim)
    and linear_bias (out_dim,). The norm is that of a LayerNorm, or with ``is_rms_norm`` the root
    mean square; its result is rounded to the dtype of autocast, or where that is off to that of x,
    in which the product is taken.

    Returns the output (..., out_dim); with ``prenorm`` also the sum, as ``layer_norm_fn`` does.
    Raises ValueError for shapes that do not fit.
    """
    dtype = autocast_dtype(x.device) or x.dtype
    normed, total = layer_norm(
        x,
        norm_weight,
        norm_bias,
        residual=residual,
        eps=eps,
        prenorm=True,
        residual_in_fp32=residual_in_fp32,
        is_rms_norm=is_rms_norm,
        dtype=dtype,
    )
    bias = None if linear_bias is None else linear_bias.to(dtype)
    with without_autocast(x.device):
        out = functional.linear(normed, linear_weight.to(dtype), bias)
    return (out, total) if prenorm else out
