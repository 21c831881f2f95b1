"""The derivatives of the scan by a backend, an autograd function around its two passes."""

from __future__ import annotations

from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch import twice
from jetson_mamba.dispatch.fields import Tensors
from jetson_mamba.dispatch.paths import Way, way, way_back

from . import composed
from .checks import checked
from .contract import SCAN, Case, Gradients, Implementation


def composed_output(*arguments: Any) -> tuple[Tensor, Tensor]:
    """The output and the last state, which is not differentiable."""
    scan, _ = checked(*arguments, chosen=Way.COMPOSED)
    output, last_state = composed.output(scan)
    return output.to(arguments[0].dtype), last_state.detach()


def recorded_last_state(last_state: Tensor, *arguments: Any) -> Tensor:
    """The last state of a scan, differentiable by the scan's arguments.

    A pass back through it takes the composed form; one that does not reach it costs nothing.
    """
    if way(*(each for each in arguments if isinstance(each, Tensor))) is not Way.KERNELS:
        return _composed_state(*arguments)
    found: Tensor = _LastState.apply(*arguments, last_state)  # type: ignore[no-untyped-call]
    return found


def _composed_state(*arguments: Any) -> Tensor:
    scan, _ = checked(*arguments, chosen=Way.COMPOSED)
    return composed.output(scan)[1]


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


class _LastState(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> Tensor:
        given, (last_state,) = SCAN.split(arguments)
        SCAN.keep(ctx, given)
        found: Tensor = last_state.clone()
        return found

    @staticmethod
    def backward(ctx: Any, dlast_state: Tensor) -> tuple[Tensor | None, ...]:
        given, _ = SCAN.kept(ctx)
        needed: Any = SCAN.split(ctx.needs_input_grad)[0]
        return (*twice.gradients(_composed_state, given, needed, (dlast_state,)), None)
