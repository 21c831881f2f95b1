"""What surrounds the scan in a Mamba-2 block: gated RMSNorm and the gated MLP, with gradients.

Both are short chains of elementwise steps; their gradients are written out so that a block keeps
only their inputs. They compute in at least float32 and return that dtype.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.autocast import compute_dtype
from jetson_mamba.dispatch.tracing import unflatten


def silu_and_slope(x: Tensor) -> tuple[Tensor, Tensor]:
    """``x sigmoid(x)`` and its derivative."""
    open_ = torch.sigmoid(x)
    silu = x * open_
    return silu, open_ + silu * (1 - open_)


class GatedRMSNorm(NamedTuple):
    """``RMSNorm(x) * silu(z)``, or ``RMSNorm(x * silu(z))`` where the norm is not before the gate.

    x and z are (..., dim), the weight is (dim,); the root mean square is taken over each run of
    ``group_size`` channels (Dao and Gu, "Transformers are SSMs", 2024, section 7).
    """

    weight: Tensor
    eps: float
    group_size: int
    norm_before_gate: bool

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """The output, of the shape of x."""
        dtype = compute_dtype(x, z, self.weight)
        x, gate = x.to(dtype), functional.silu(z.to(dtype))
        if self.norm_before_gate:
            return self._normed(x)[0] * self.weight * gate
        return self._normed(x * gate)[0] * self.weight

    def backward(self, x: Tensor, z: Tensor, dout: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dx, dz, dweight, and the output once more."""
        dtype = compute_dtype(x, z, self.weight)
        x, dout = x.to(dtype), dout.to(dtype)
        gate, slope = silu_and_slope(z.to(dtype))
        if self.norm_before_gate:
            normed, rstd = self._normed(x)
            scaled = normed * self.weight
            dx, dweight = self._norm_gradients(normed, rstd, dout * gate)
            return dx, dout * scaled * slope, dweight, scaled * gate
        normed, rstd = self._normed(x * gate)
        dgated, dweight = self._norm_gradients(normed, rstd, dout)
        return dgated * gate, dgated * x * slope, dweight, normed * self.weight

    def rstd(self, x: Tensor, z: Tensor) -> Tensor:
        """One over the root mean squares: (ngroups * rows,), the rows of a group together."""
        dtype = compute_dtype(x, z, self.weight)
        x = x.to(dtype)
        if not self.norm_before_gate:
            x = x * functional.silu(z.to(dtype))
        return self._normed(x)[1].flatten(0, -3).squeeze(-1).t().flatten()

    def _normed(self, x: Tensor) -> tuple[Tensor, Tensor]:
        grouped = unflatten(x, -1, (-1, self.group_size))
        rstd = torch.rsqrt(grouped.square().mean(-1, keepdim=True) + self.eps)
        return (grouped * rstd).flatten(-2), rstd

    def _norm_gradients(
        self, normed: Tensor, rstd: Tensor, dscaled: Tensor
    ) -> tuple[Tensor, Tensor]:
        dnormed = unflatten(dscaled * self.weight, -1, (-1, self.group_size))
        grouped = unflatten(normed, -1, (-1, self.group_size))
        along = (dnormed * grouped).mean(-1, keepdim=True)
        dweight = (dscaled * normed).flatten(0, -2).sum(0)
        return ((dnormed - grouped * along) * rstd).flatten(-2), dweight


def gate(x: Tensor, z: Tensor) -> Tensor:
    """``x * silu(z)``."""
    dtype = compute_dtype(x, z)
    return x.to(dtype) * functional.silu(z.to(dtype))


def swiglu(halves: Tensor) -> Tensor:
    """``silu(a) * b`` for ``halves = [a, b]`` on the last axis."""
    a, b = halves.to(compute_dtype(halves)).chunk(2, dim=-1)
    return functional.silu(a) * b


def swiglu_backward(halves: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient of ``halves``, and the output once more."""
    a, b = halves.to(compute_dtype(halves)).chunk(2, dim=-1)
    silu, slope = silu_and_slope(a)
    dout = dout.to(a.dtype)
    return torch.cat([dout * b * slope, dout * silu], dim=-1), silu * b
