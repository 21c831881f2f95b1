"""A decoding step as tensor operations, for every device, also where something looks at each."""

from __future__ import annotations

import math
from functools import partial
from typing import Callable, overload

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch import workers
from jetson_mamba.dispatch.division import Part, divided
from jetson_mamba.dispatch.tracing import beside, is_traced, sizes

from .contract import Case, Implementation, Step

# Of a part on a CPU, which reads them several times: 1 MiB in float32.
MOST_STATES = 1 << 18
LOG2_E = 1 / math.log(2)


def load(case: Case) -> Implementation:
    """The implementation; it serves every case."""
    return update


def update(step: Step) -> Tensor:
    """The output, on a CPU part by part: by threads, and so that a part's states stay in a cache.

    Nothing that looks at operations may be on the way: it would see those of one thread.
    """
    batch, nheads, dim = step.x.shape
    elements = batch * nheads * dim * step.states.shape[3]
    threads = workers.threads_for(elements) if step.x.device.type == "cpu" else 1
    count = max(threads, elements // MOST_STATES) if step.x.device.type == "cpu" else 1
    if count == 1:
        return whole(step, _exponential)
    out = torch.empty_like(step.x)

    def compute(part: Step, target: Tensor) -> None:
        target.copy_(whole(part, _exponential_of_part))

    # Which sequence has which state is for all of them to tell: a part could not know that the
    # state which it leaves as it was, for want of one of its own, is another's.
    sequences = 1 if step.indices is not None else batch
    by_head = nheads * sequences >= count
    parts = (
        divided(count, sequences, nheads, step.B.shape[1])
        if by_head
        else divided(count, sequences, dim)
    )
    calls = []
    for part in parts:
        one = part if step.indices is None else part._replace(batch=slice(None))
        if not by_head:
            one = one._replace(groups=slice(None))
        calls.append(partial(compute, *_of_part(one, by_head, step, out)))
    workers.run(calls, threads, short=True)
    return out


def _of_part(part: Part, by_head: bool, step: Step, out: Tensor) -> tuple[Step, Tensor]:
    """The step of some sequences and heads, or channels of each head, and its output."""
    heads, channels = (part.channels, slice(None)) if by_head else (slice(None), part.channels)

    def weight(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[heads, channels]

    def signal(tensor: Tensor) -> Tensor:
        return tensor[part.batch, heads, channels]

    return (
        step._replace(
            states=signal(step.states),
            x=signal(step.x),
            dt=signal(step.dt),
            A=step.A[heads, channels],
            B=step.B[part.batch, part.groups],
            C=step.C[part.batch, part.groups],
            D=weight(step.D),
            z=None if step.z is None else signal(step.z),
            dt_bias=weight(step.dt_bias),
        ),
        signal(out),
    )


def whole(step: Step, exponential: Callable[[Tensor], Tensor] = torch.exp) -> Tensor:
    """The output. What is expanded along an axis is computed once for all of it."""
    return composed(
        step._replace(
            dt=_once(step.dt), A=_once(step.A), D=_once(step.D), dt_bias=_once(step.dt_bias)
        ),
        exponential,
    )


def _exponential(x: Tensor) -> Tensor:
    """exp(x), which may be written to x: on a CPU by the thread that asks.

    Of all operations here torch, or MKL for it, divides ``exp`` among threads whatever its size,
    and they wait for each other longer than it takes where other programs use the cores.
    """
    if not (x.is_cpu and x.is_contiguous() and x.numel() < workers.GRAIN):
        return torch.exp(x)
    return _exponential_of_part(x)


def _exponential_of_part(x: Tensor) -> Tensor:
    return x.mul_(LOG2_E).exp2_()


def _beside_x(step: Step) -> Step:
    """The same, for a trace that has to refuse what is of another batch than x."""
    names = ("dt", "B", "C", "z", "indices")
    alike = {name: beside(name, getattr(step, name), step.x, (0, 0)) for name in names}
    return step._replace(**alike)


def composed(
    step: Step,
    exponential: Callable[[Tensor], Tensor] = torch.exp,
    *,
    recorded: bool = False,
) -> Tensor:
    """The output, for a trace too, in which what is expanded now need not be later.

    ``recorded``: autograd can go back through it, since no tensor that it keeps is written.
    """
    if is_traced():
        step = _beside_x(step)
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
    if isinstance(repeats, int) and repeats == 1:
        B, C = B.to(dtype).unsqueeze(2), C.to(dtype).unsqueeze(2)
    else:
        B, C = (each.to(dtype).repeat_interleave(repeats, dim=1).unsqueeze(2) for each in (B, C))
    decay = exponential(steps.unsqueeze(-1) * A.to(dtype))
    entering = (steps * inputs).unsqueeze(-1)

    used = None
    if indices is None:
        before = beside("state", states[: x.shape[0]], x, (0, 0))
        if recorded:
            after = torch.addcmul(before.to(dtype, copy=True) * decay, entering, B)
        else:
            after = before.to(dtype)  # the state itself where it has that dtype
            after.mul_(decay).addcmul_(entering, B)
        if before.dtype != dtype or recorded:
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
