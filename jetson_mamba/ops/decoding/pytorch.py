"""A decoding step as tensor operations, for every device, also where something looks at each."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.tracing import sizes

from .contract import Case, Implementation, Step


def load(case: Case) -> Implementation:
    """The implementation; it serves every case."""
    return update


def update(step: Step) -> Tensor:
    """The output. What is expanded along an axis is computed once for all of it."""
    return composed(
        step._replace(
            dt=_once(step.dt), A=_once(step.A), D=_once(step.D), dt_bias=_once(step.dt_bias)
        )
    )


def composed(step: Step) -> Tensor:
    """The output, for a trace too, in which what is expanded now need not be later."""
    states, x, dt, A, B, C, D, z, dt_bias, indices, dt_softplus = step
    nheads = sizes(x)[1]
    dtype = step.dtype
    inputs = x.to(dtype)
    steps = dt.to(dtype)
    if dt_bias is not None:
        steps = steps + dt_bias.to(dtype)
    if dt_softplus:
        steps = functional.softplus(steps)
    repeats = nheads // sizes(B)[1]
    B, C = (each.to(dtype).repeat_interleave(repeats, dim=1).unsqueeze(2) for each in (B, C))
    decay = torch.exp(steps.unsqueeze(-1) * A.to(dtype))
    entering = (steps * inputs).unsqueeze(-1)

    used = None
    if indices is None:
        before = states[: x.shape[0]]
        after = before.to(dtype)  # the state itself where it has that dtype
        after.mul_(decay).addcmul_(entering, B)
        if before.dtype != dtype:
            before.copy_(after)
    else:
        used = indices >= 0
        rows = _rows(used)
        slots = indices.index_select(0, rows).clamp(min=0).long()
        before = states.index_select(0, slots)
        after = (before.to(dtype) * decay).addcmul_(entering, B)
        written = after.index_select(0, rows).to(states.dtype)
        # Where all is padding, what was there is written.
        states.index_copy_(0, slots, torch.where(used.any(), written, before))

    out = (after * C).sum(-1)
    if D is not None:
        out = out + D.to(dtype) * inputs
    if z is not None:
        out = out * functional.silu(z.to(dtype))
    if used is not None:
        out = out.masked_fill(~used.view(-1, 1, 1), 0.0)
    return out.to(x.dtype)


def _rows(used: Tensor) -> Tensor:
    """The sequence whose result each sequence writes: its own, and for padding the first used.

    Two that write the same to one place do no harm, and no shape depends on values, which a graph
    could not hold.
    """
    own = torch.arange(used.shape[0], device=used.device)
    if sizes(used)[0] == 0:
        return own
    return torch.where(used, own, used.to(torch.int32).argmax())


@overload
def _once(tensor: Tensor) -> Tensor: ...
@overload
def _once(tensor: None) -> None: ...
def _once(tensor: Tensor | None) -> Tensor | None:
    """The tensor with one element along each axis that it is expanded along."""
    if tensor is None:
        return None
    for axis, stride in enumerate(tensor.stride()):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor
