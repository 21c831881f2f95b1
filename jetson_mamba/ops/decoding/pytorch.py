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
from jetson_mamba.dispatch.in_place import write
from jetson_mamba.dispatch.tracing import beside, sizes

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


def composed(
    step: Step,
    exponential: Callable[[Tensor], Tensor] = torch.exp,
    *,
    recorded: bool = False,
) -> Tensor:
    """The output, of operations that may write to what they have made, as to the states.

    ``recorded``: autograd can go back through it, since no tensor that it keeps is written.
    """
    dtype = step.dtype
    decay, entering, B = _factors(step, dtype, exponential)
    if step.indices is None:
        before = step.states[: step.x.shape[0]]
        if recorded:
            after = torch.addcmul(before.to(dtype, copy=True) * decay, entering, B)
        else:
            after = before.to(dtype)  # the state itself where it has that dtype
            after.mul_(decay).addcmul_(entering, B)
        if before.dtype != dtype or recorded:
            before.copy_(after)
    else:
        slots, before = _slots(step, step.indices)
        after = (before.to(dtype) * decay).addcmul_(entering, B)
        step.states.index_copy_(0, slots, _written(step, step.indices, before, after))
    return _output(step, dtype, after)


def traced(step: Step, state: Tensor) -> Tensor:
    """The output of a step whose states are ``state``, with an axis of heads or without.

    That is written itself, since an export loses what is written to a view of it. What is expanded
    now need not be where the trace runs, which refuses what is of another batch than x.
    """
    names = ("dt", "B", "C", "z", "indices")
    step = step._replace(
        **{name: beside(name, getattr(step, name), step.x, (0, 0)) for name in names}
    )
    dtype = step.dtype
    decay, entering, B = _factors(step, dtype, torch.exp)
    slots, before = None, step.states[: step.x.shape[0]]
    if step.indices is None:
        before = beside("state", before, step.x, (0, 0))
    else:
        slots, before = _slots(step, step.indices)
    after = torch.addcmul(before.to(dtype) * decay, entering, B)
    written = after.to(state.dtype)
    if step.indices is not None:
        written = _written(step, step.indices, before, after)
    if state.dim() < step.states.dim():
        written = written.squeeze(1)
    write(state, written, slots)
    return _output(step, dtype, after)


def _factors(
    step: Step, dtype: torch.dtype, exponential: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """The decay of the state, and what enters it as the first of these times the second."""
    steps = step.dt.to(dtype)
    if step.dt_bias is not None:
        steps = steps + step.dt_bias.to(dtype)
    if step.dt_softplus:
        steps = functional.softplus(steps)
    decay = exponential(steps.unsqueeze(-1) * step.A.to(dtype))
    return decay, (steps * step.x.to(dtype)).unsqueeze(-1), _of_heads(step, dtype, step.B)


def _of_heads(step: Step, dtype: torch.dtype, of_groups: Tensor) -> Tensor:
    """B or C as (batch, nheads, 1, dstate), or with 1 head where that is the same."""
    repeats = sizes(step.x)[1] // sizes(of_groups)[1]
    wide = of_groups.to(dtype)
    if not (isinstance(repeats, int) and repeats == 1):
        wide = wide.repeat_interleave(repeats, dim=1)
    return wide.unsqueeze(2)


def _slots(step: Step, indices: Tensor) -> tuple[Tensor, Tensor]:
    """Which state each sequence writes, and what it is: for padding, those of :func:`_rows`."""
    slots = indices.index_select(0, _rows(indices >= 0)).clamp(min=0).long()
    return slots, step.states.index_select(0, slots)


def _written(step: Step, indices: Tensor, before: Tensor, after: Tensor) -> Tensor:
    """What is written there. Where all is padding, that is what was there."""
    used = indices >= 0
    written = after.index_select(0, _rows(used)).to(step.states.dtype)
    return torch.where(used.any(), written, before)


def _output(step: Step, dtype: torch.dtype, after: Tensor) -> Tensor:
    """What is read out of the states after the step."""
    out = (after * _of_heads(step, dtype, step.C)).sum(-1)
    if step.D is not None:
        out = out + step.D.to(dtype) * step.x.to(dtype)
    if step.z is not None:
        out = out * functional.silu(step.z.to(dtype))
    if step.indices is not None:
        out = out.masked_fill((step.indices < 0).view(-1, 1, 1), 0.0)
    return out.to(step.x.dtype)


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
