"""One step of the selective scan, by which a model decodes token by token.

Takes the place of the function of the same name in ``mamba_ssm.ops.triton.selective_state_update``
wherever Triton kernels cannot be launched. It computes as upstream's kernel does, in float32
whatever the dtypes, and as that does records no gradient.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import overload

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.dispatch.paths import Way, way
from jetson_mamba.dispatch.tracing import sizes, untraced

from ..ssd.contract import compute_dtype


@torch.no_grad()
def selective_state_update(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    state_batch_indices: Tensor | None = None,
) -> Tensor:
    """Step ``h = exp(dt A) h + dt B x^T``, in place, and read it out as ``C h + D x``.

    Shapes: state (states, nheads, dim, dstate); x, dt and z (batch, nheads, dim), A (nheads, dim,
    dstate), B and C (batch, ngroups, dstate), D and dt_bias (nheads, dim). Each may lack its axis
    of heads, or of groups, where that has length 1. Floating, in any mixture of dtypes; products
    are in float32, or float64 if any argument is. ``dt`` becomes ``softplus(dt + dt_bias)``, where
    asked for; with z the output is multiplied by ``silu(z)``. What is expanded along an axis, as
    dt and A of Mamba-2 are, is computed once for all of it.

    ``state_batch_indices`` (batch,), int32 or int64, says which state belongs to each sequence; no
    two may share one. Negative means padding: its output is 0 and no state changes. Without
    indices the first ``batch`` states are used.

    Returns out, in the dtype of x: (batch, nheads, dim), without nheads where the state has none.
    The state keeps its dtype; out is of the state before it is rounded to that.

    Raises ValueError or TypeError for arguments that do not fit together.
    """
    _check_dtypes(
        {"state": state, "x": x, "dt": dt, "A": A, "B": B, "C": C},
        {"D": D, "z": z, "dt_bias": dt_bias},
    )
    if state.dim() not in (3, 4):
        raise ValueError(
            "state: expected shape (states, nheads, dim, dstate) or (states, dim, dstate), "
            f"found {tuple(state.shape)}"
        )
    found = way(state, x, dt, A, B, C, D, z, dt_bias)
    has_heads = state.dim() == 4
    states = state if has_heads else state.unsqueeze(1)
    count, nheads, dim, dstate = sizes(states)
    batch = sizes(x)[0] if x.dim() else 0
    ngroups = sizes(B)[1] if B.dim() == 3 else 1
    if ngroups < 1 or nheads % ngroups:
        raise ValueError(
            f"B: its second axis, ngroups, must be a divisor of nheads={nheads}, found {ngroups}"
        )
    per_step = {"batch": batch, "nheads": nheads, "dim": dim}
    per_group = {"batch": batch, "ngroups": ngroups, "dstate": dstate}
    per_channel = {"nheads": nheads, "dim": dim}
    x = _fitted("x", x, per_step)
    dt = _fitted("dt", dt, per_step)
    A = _fitted("A", A, {**per_channel, "dstate": dstate})
    B = _fitted("B", B, per_group)
    C = _fitted("C", C, per_group)
    if D is not None:
        D = _fitted("D", D, per_channel)
    if z is not None:
        z = _fitted("z", z, per_step)
    if dt_bias is not None:
        dt_bias = _fitted("dt_bias", dt_bias, per_channel)
    if found is not Way.COMPOSED:
        # In a trace, what is expanded now need not be later.
        dt, A, D, dt_bias = _once(dt), _once(A), _once(D), _once(dt_bias)
    if state_batch_indices is not None:
        with untraced() if found is Way.COMPOSED else nullcontext():
            _check_indices(state_batch_indices, batch, count, found)
    elif count < batch:
        raise ValueError(f"state: expected at least batch={batch} states, found {count}")

    dtype = compute_dtype(state, x, dt, A, B, C, D, z, dt_bias)
    inputs = x.to(dtype)
    steps = dt.to(dtype)
    if dt_bias is not None:
        steps = steps + dt_bias.to(dtype)
    if dt_softplus:
        steps = functional.softplus(steps)
    repeats = nheads // ngroups
    B, C = (each.to(dtype).repeat_interleave(repeats, dim=1).unsqueeze(2) for each in (B, C))
    decay = torch.exp(steps.unsqueeze(-1) * A.to(dtype))
    entering = (steps * inputs).unsqueeze(-1)

    used = None
    if state_batch_indices is None:
        before = states[: x.shape[0]]
        after = before.to(dtype)  # the state itself where it has that dtype
        after.mul_(decay).addcmul_(entering, B)
        if before.dtype != dtype:
            before.copy_(after)
    else:
        used = state_batch_indices >= 0
        rows = _rows(used)
        slots = state_batch_indices.index_select(0, rows).clamp(min=0).long()
        before = states.index_select(0, slots)
        after = (before.to(dtype) * decay).addcmul_(entering, B)
        written = after.index_select(0, rows).to(state.dtype)
        # Where all is padding, what was there is written.
        states.index_copy_(0, slots, torch.where(used.any(), written, before))

    out = (after * C).sum(-1)
    if D is not None:
        out = out + D.to(dtype) * inputs
    if z is not None:
        out = out * functional.silu(z.to(dtype))
    if used is not None:
        out = out.masked_fill(~used.view(-1, 1, 1), 0.0)
    out = out.to(x.dtype)
    return out if has_heads else out.squeeze(1)


def _rows(used: Tensor) -> Tensor:
    """The sequence whose result each sequence writes: its own, and for padding the first used.

    Two that write the same to one place do no harm, and no shape depends on values, which a graph
    could not hold.
    """
    own = torch.arange(used.shape[0], device=used.device)
    if sizes(used)[0] == 0:
        return own
    return torch.where(used, own, used.to(torch.int32).argmax())


def _check_indices(indices: Tensor, batch: int, count: int, found: Way) -> None:
    if indices.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"state_batch_indices: expected int32 or int64, found {indices.dtype}")
    if tuple(indices.shape) != (batch,):
        raise ValueError(
            f"state_batch_indices: expected shape (batch={batch},), found {tuple(indices.shape)}"
        )
    # Elsewhere than on a CPU, to look at the values would be to wait for them.
    if batch and indices.device.type == "cpu" and found is Way.KERNELS:
        greatest = int(indices.max())
        if greatest >= count:
            raise ValueError(
                f"state_batch_indices: expected less than the {count} states there are, "
                f"found {greatest}"
            )


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


def _fitted(name: str, tensor: Tensor, axes: dict[str, int]) -> Tensor:
    """The tensor with all of its axes, of which that of heads or groups may have been left out.

    Raises ValueError where its shape is another.
    """
    optional = "ngroups" if "ngroups" in axes else "nheads"
    if tensor.dim() == len(axes) - 1:
        tensor = tensor.unsqueeze(list(axes).index(optional))
    if sizes(tensor) != tuple(axes.values()):
        meaning = ", ".join(f"{axis}={size}" for axis, size in axes.items())
        raise ValueError(
            f"{name}: expected shape ({meaning}), where {optional} may be left out if it is 1, "
            f"found {sizes(tensor)}"
        )
    return tensor


def _check_dtypes(required: dict[str, Tensor], optional: dict[str, Tensor | None]) -> None:
    for name, tensor in {**required, **optional}.items():
        if tensor is None and name in optional:
            continue
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name}: expected a tensor, found {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, found {tensor.dtype}")
