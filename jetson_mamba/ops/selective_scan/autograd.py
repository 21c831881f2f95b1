"""The derivatives of the scan by a backend, an autograd function around its two passes."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.paths import Way, way_back

from . import composed
from .checks import checked
from .contract import Case, Implementation


def composed_output(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The output and the last state, which is not differentiable."""
    scan, _ = checked(*arguments, chosen=Way.COMPOSED)
    output, last_state = composed.output(scan)
    return output.to(arguments[0].dtype), last_state.detach()


def differentiable(
    choose: Callable[[Case], Implementation],
    backward: Callable[..., list[Tensor | None]],
    *arguments: Any,
) -> tuple[Tensor, Tensor]:
    """The output of a scan, and the last state, which is not differentiable.

    ``choose`` gives the backend, for each pass anew; ``backward`` is ``selective_scan_bwd``.
    """
    found: tuple[Tensor, Tensor] = _SelectiveScan.apply(  # type: ignore[no-untyped-call]
        choose, backward, *arguments
    )
    return found


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        choose: Callable[[Case], Implementation],
        backward: Callable[..., list[Tensor | None]],
        *arguments: Any,
    ) -> tuple[Tensor, Tensor]:
        *tensors, ctx.delta_softplus = arguments
        ctx.backward_pass = backward
        scan, case = checked(*arguments)
        out, x, out_z = choose(case).forward(scan)
        dtype = tensors[0].dtype
        ctx.save_for_backward(*tensors, x, None if out_z is None else out.to(dtype))
        last_state = x[:, :, -1, 1::2].clone()
        ctx.mark_non_differentiable(last_state)
        return (out if out_z is None else out_z).to(dtype), last_state

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        u, delta, A, B, C, D, z, delta_bias, x, out = ctx.saved_tensors
        softplus = ctx.delta_softplus
        if torch.is_grad_enabled() or way_back(dout) is Way.COMPOSED:
            arguments = (u, delta, A, B, C, D, z, delta_bias, softplus)
            needed = ctx.needs_input_grad[2:]
            return (None, None, *twice.gradients(composed_output, arguments, needed, (dout,)))
        found = ctx.backward_pass(
            u, delta, A, B, C, D, z, delta_bias, dout, x, out, None, softplus, False
        )
        du, ddelta, dA, dB, dC, dD, ddelta_bias, *rest = found
        dz = rest[0] if rest else None
        return None, None, du, ddelta, dA, dB, dC, dD, dz, ddelta_bias, None
