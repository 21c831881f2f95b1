"""The norms by kernels, with their derivatives: an autograd function that keeps what was normed.

That is x or, where something is added to it, the sum; statistics are computed once more in the
backward pass. Derivatives beyond the first are those of the plain operations.
"""

from __future__ import annotations

from typing import Any, Callable, Sequence

import torch
from torch import Tensor

from jetson_mamba.ops.ssd.autograd import Computation, Tensors

from .contract import Implementation, Options
from .serving import rows_of

Plain = Callable[..., Any]


def normed(
    kernels: Implementation,
    plain: Plain,
    tensors: tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor | None],
    total_dtype: torch.dtype | None,
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    """The output, and where a dtype is named for it the sum of x and residual.

    ``tensors`` are x, residual, z, weight and bias; ``plain`` takes them too and returns the
    output and, named or not, the sum.
    """
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in tensors):
        out, total = _NORM(*tensors, kernels, plain, total_dtype, options)
        return out, total
    return _forward(kernels, tensors, total_dtype, options)


def _forward(
    kernels: Implementation,
    tensors: Sequence[Any],
    total_dtype: torch.dtype | None,
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    x, residual, z, weight, bias = tensors
    found = kernels.forward(
        rows_of(x),
        None if residual is None else rows_of(residual),
        None if z is None else rows_of(z),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        total_dtype,
        x.dtype,
        options,
        False,
    )
    total = None if found.total is None else found.total.view(x.shape)
    return found.out.view(x.shape), total


def _passes_forward(*arguments: Any) -> tuple[Tensors, Sequence[Tensor]]:
    tensors, (kernels, _, total_dtype, options) = arguments[:5], arguments[5:]
    residual = tensors[1]
    kept_dtype = total_dtype
    if residual is not None and kept_dtype is None:
        kept_dtype = residual.dtype
    out, total = _forward(kernels, tensors, kept_dtype, options)
    return (out, None if total_dtype is None else total), ([] if total is None else [total])


def _passes_back(
    arguments: tuple[Any, ...], kept: Sequence[Tensor], dresults: Tensors
) -> Sequence[Tensor | None]:
    x, residual, z, weight, bias, kernels, _, _, options = arguments
    dout, dtotal = dresults
    source = kept[0] if kept else x
    if dout is None:
        dout = torch.zeros_like(x)
    found = kernels.backward(
        rows_of(source),
        None if z is None else rows_of(z),
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        rows_of(dout),
        None if dtotal is None else rows_of(dtotal),
        None if residual is None else residual.dtype,
        options,
        None,
    )
    return (
        found.x.view(x.shape),
        None if found.residual is None else found.residual.view(x.shape),
        None if found.z is None else found.z.view(x.shape),
        found.weight,
        found.bias,
    )


def _composed(*arguments: Any) -> Tensors:
    tensors, (_, plain, total_dtype, _) = arguments[:5], arguments[5:]
    out, total = plain(*tensors)
    return out, None if total_dtype is None else total.to(total_dtype)


_NORM = Computation(5, _passes_forward, _passes_back, _composed)
