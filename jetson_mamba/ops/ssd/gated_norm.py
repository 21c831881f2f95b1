"""The norm of a mixer without a graph: by the CUDA kernels of the norms where they serve."""

from __future__ import annotations

from torch import Tensor

from jetson_mamba.ops.norms.contract import Gate, Options
from jetson_mamba.ops.norms.serving import kernels_on_gpu, rows_of

from .gates import GatedRMSNorm


def forward(
    norm: GatedRMSNorm, x: Tensor, z: Tensor, *, with_rstd: bool = False
) -> tuple[Tensor, Tensor | None]:
    """The output (batch, seqlen, dim), in the dtype of x, and ``norm.rstd`` where it is wanted."""
    kernels = None
    if x.is_cuda and x.dtype == z.dtype:
        kernels = kernels_on_gpu(x, norm.weight, norm.group_size, needs_backward=False)
    if kernels is None:
        return norm.forward(x, z).to(x.dtype), norm.rstd(x, z) if with_rstd else None
    found = kernels.forward(
        *(rows_of(x), None, rows_of(z), norm.weight.contiguous(), None, None, x.dtype),
        *(_options(norm), with_rstd),
    )
    return found.out.view(x.shape), None if found.rstd is None else found.rstd.flatten()


def backward(
    norm: GatedRMSNorm, x: Tensor, z: Tensor, dout: Tensor, dz: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x (batch, seqlen, dim) and of the weight; that of z is written to dz.

    Where it costs nothing, also the output once more.
    """
    kernels = None
    if x.is_cuda and x.dtype == z.dtype == dz.dtype:
        kernels = kernels_on_gpu(x, norm.weight, norm.group_size, dout, needs_backward=True)
    if kernels is None:
        dx, gradient, dweight, out = norm.backward(x, z, dout)
        dz.copy_(gradient)
        return dx, dweight, out
    rows = rows_of(dz)
    is_view = rows.data_ptr() == dz.data_ptr()
    found = kernels.backward(
        *(rows_of(x), rows_of(z), norm.weight.contiguous(), None, rows_of(dout), None, None),
        *(_options(norm), rows if is_view else None),
    )
    if not is_view and found.z is not None:
        dz.copy_(found.z.view(dz.shape))
    return found.x.view(x.shape), found.weight, None


def _options(norm: GatedRMSNorm) -> Options:
    gate = Gate.OUTPUT if norm.norm_before_gate else Gate.INPUT
    return Options(norm.eps, norm.group_size, True, gate)
