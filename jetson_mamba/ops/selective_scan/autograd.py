"""The derivatives of the scan by a backend, an autograd function around its two passes."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.fields import Tensors
from jetson_mamba.dispatch.paths import Way, way_back

from . import composed
from .checks import checked
from .contract import SCAN, Case, Gradients, Implementation


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
        *arguments, choose, backward
    )
    return found


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        given, (choose, ctx.backward_pass) = SCAN.split(arguments)
        scan, case = checked(*given)
        out, x, out_z = choose(case).forward(scan)
        dtype = given.u.dtype
        SCAN.keep(ctx, given, x, None if out_z is None else out.to(dtype))
        last_state: Tensor = x[:, :, -1, 1::2].clone()
        ctx.mark_non_differentiable(last_state)
        return (out if out_z is None else out_z).to(dtype), last_state

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        given, (x, out) = SCAN.kept(ctx)
        found: Tensors
        if torch.is_grad_enabled() or way_back(dout) is Way.COMPOSED:
            needed: Any = SCAN.split(ctx.needs_input_grad)[0]
            found = twice.gradients(composed_output, given, needed, (dout,))
        else:
            tensors, (softplus,) = SCAN.unpack(given)
            back = ctx.backward_pass(*tensors, dout, x, out, None, softplus, False)
            found = Gradients(*back).in_order
        return (*found, None, None)
