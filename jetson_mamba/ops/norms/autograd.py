"""The norms by kernels, with their derivatives: an autograd function that keeps what was normed.

That is x or, where something is added to it, the sum; statistics are computed once more in the
backward pass. Derivatives beyond the first are those of the plain operations.
"""

from __future__ import annotations

from typing import Any, Callable, Mapping, NamedTuple, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.computation import Computation
from jetson_mamba.dispatch.fields import Fields, Tensors

from .contract import Implementation, Options
from .serving import rows_of

Plain = Callable[..., Any]


class Terms(NamedTuple):
    """What is normed, and by what."""

    x: Tensor
    residual: Tensor | None
    z: Tensor | None
    weight: Tensor
    bias: Tensor | None


def normed(
    kernels: Implementation,
    plain: Plain,
    terms: Terms,
    total_dtype: torch.dtype | None,
    options: Options,
) -> tuple[Tensor, Tensor | None]:
    """The output, and where a dtype is named for it the sum of x and residual.

    ``plain`` takes the terms too and returns the output and, named or not, the sum.
    """
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in terms):
        out, total = _NORM(terms, kernels, plain, total_dtype, options)
        return out, total
    return _forward(kernels, terms, total_dtype, options)


def _forward(
    kernels: Implementation, terms: Terms, total_dtype: torch.dtype | None, options: Options
) -> tuple[Tensor, Tensor | None]:
    x, residual, z, weight, bias = terms
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


def _passes_forward(
    terms: Terms,
    kernels: Implementation,
    plain: Plain,
    total_dtype: torch.dtype | None,
    options: Options,
) -> tuple[Tensors, Sequence[Tensor]]:
    kept_dtype = total_dtype
    if terms.residual is not None and kept_dtype is None:
        kept_dtype = terms.residual.dtype
    out, total = _forward(kernels, terms, kept_dtype, options)
    return (out, None if total_dtype is None else total), ([] if total is None else [total])


def _passes_back(
    terms: Terms,
    kept: Sequence[Tensor],
    dresults: Tensors,
    kernels: Implementation,
    plain: Plain,
    total_dtype: torch.dtype | None,
    options: Options,
) -> Mapping[str, Tensor | None]:
    x, residual, z, weight, bias = terms
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
    return found._replace(
        x=found.x.view(x.shape),
        residual=None if found.residual is None else found.residual.view(x.shape),
        z=None if found.z is None else found.z.view(x.shape),
    )._asdict()


def _composed(
    terms: Terms,
    kernels: Implementation,
    plain: Plain,
    total_dtype: torch.dtype | None,
    options: Options,
) -> Tensors:
    out, total = plain(*terms)
    return out, None if total_dtype is None else total.to(total_dtype)


_NORM = Computation(Fields(Terms), _passes_forward, _passes_back, _composed)
