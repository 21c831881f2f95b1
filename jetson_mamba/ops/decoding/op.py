"""One step of the selective scan, by which a model decodes token by token.

Takes the place of the function of the same name in ``mamba_ssm.ops.triton.selective_state_update``
wherever Triton kernels cannot be launched: by this project's CUDA kernel or in PyTorch. It computes
as upstream's kernel does, in float32 whatever the dtypes, and as that does records no gradient;
:func:`recorded_state_update` records one.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, Callable

import torch
from torch import Tensor

from jetson_mamba.dispatch.arguments import check_dtype
from jetson_mamba.dispatch.backends import Op
from jetson_mamba.dispatch.in_place import count_write, version
from jetson_mamba.dispatch.operators import define, is_compiling
from jetson_mamba.dispatch.paths import Way, way
from jetson_mamba.dispatch.tracing import is_traced, sizes, untraced

from .contract import STEP, Case, Implementation, Step
from .pytorch import composed, traced, update, whole


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
    return _stepped(
        state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, state_batch_indices, recorded=False
    )


def recorded_state_update(
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
) -> Tensor:
    """:func:`selective_state_update`, a state for each sequence, which autograd records.

    The state it was, and what is written to it, are in the graph as well: a pass back from a later
    step runs through the earlier ones.
    """
    return _stepped(state, x, dt, A, B, C, D, z, dt_bias, dt_softplus, None, recorded=True)


def _stepped(
    state: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    state_batch_indices: Tensor | None,
    *,
    recorded: bool,
) -> Tensor:
    for name, each in (("state", state), ("x", x), ("dt", dt), ("A", A), ("B", B), ("C", C)):
        check_dtype(name, each)
    for name, other in (("D", D), ("z", z), ("dt_bias", dt_bias)):
        if other is not None:
            check_dtype(name, other)
    axes = state.dim()
    if axes not in (3, 4):
        raise ValueError(
            "state: expected shape (states, nheads, dim, dstate) or (states, dim, dstate), "
            f"found {tuple(state.shape)}"
        )
    found = way(state, x, dt, A, B, C, D, z, dt_bias)
    # Only what is composed can be traced.
    shape_of = sizes if found is Way.COMPOSED else _shape
    has_heads = axes == 4
    states = state if has_heads else state.unsqueeze(1)
    count, nheads, dim, dstate = shape_of(states)
    batch = shape_of(x)[0] if x.dim() else 0
    ngroups = shape_of(B)[1] if B.dim() == 3 else 1
    if ngroups < 1 or nheads % ngroups:
        raise ValueError(
            f"B: its second axis, ngroups, must be a divisor of nheads={nheads}, found {ngroups}"
        )
    per_step = {"batch": batch, "nheads": nheads, "dim": dim}
    per_group = {"batch": batch, "ngroups": ngroups, "dstate": dstate}
    per_channel = {"nheads": nheads, "dim": dim}
    x = _fitted("x", x, per_step, shape_of)
    dt = _fitted("dt", dt, per_step, shape_of)
    A = _fitted("A", A, {**per_channel, "dstate": dstate}, shape_of)
    B = _fitted("B", B, per_group, shape_of)
    C = _fitted("C", C, per_group, shape_of)
    if D is not None:
        D = _fitted("D", D, per_channel, shape_of)
    if z is not None:
        z = _fitted("z", z, per_step, shape_of)
    if dt_bias is not None:
        dt_bias = _fitted("dt_bias", dt_bias, per_channel, shape_of)
    if state_batch_indices is not None:
        with untraced() if found is Way.COMPOSED else nullcontext():
            _check_indices(state_batch_indices, batch, count, found)
    elif count < batch:
        raise ValueError(f"state: expected at least batch={batch} states, found {count}")

    step = Step(states, x, dt, A, B, C, D, z, dt_bias, state_batch_indices, bool(dt_softplus))
    if found is Way.COMPOSED and is_traced():
        out = traced(step, state)
    elif found is Way.COMPOSED or recorded:
        out = composed(step, recorded=recorded)
    elif found is Way.OPERATORS and not is_compiling():
        out = _OPERATOR(*step)
    else:
        out = _computed(step, found)
    return out if has_heads else out.squeeze(1)


def _computed(step: Step, found: Way) -> Tensor:
    if found is Way.KERNELS and step.x.is_cuda and step.states.numel() and step.x.numel():
        dtypes = (step.states.dtype, step.x.dtype, step.dt.dtype, step.A.dtype)
        implementation = OP.implementation(Case(step.x.device, *dtypes))
        before = version(step.states)
        out = implementation(step)
        if out is not None:
            count_write(step.states, before)
            return out
    return update(step) if found is Way.KERNELS else whole(step)


def _trial(implementation: Implementation, case: Case) -> None:
    """A step with all that a head of Mamba-2 has, compared with PyTorch: `Op` says why."""
    if implementation is update:
        return

    def drawn(dtype: torch.dtype, start: int, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        numbers = torch.arange(start, start + count, device=case.device)
        return numbers.mul(7).remainder(11).sub(5).div(4).to(dtype).view(shape)

    results = []
    for candidate in (implementation, update):
        states = drawn(case.state_dtype, 0, 2, 2, 4, 16)
        step = Step(
            states,
            drawn(case.dtype, 1, 2, 2, 4),
            drawn(case.step_dtype, 2, 2, 2, 1).expand(2, 2, 4),
            -drawn(case.weight_dtype, 3, 2, 1, 1).abs().expand(2, 4, 16),
            drawn(case.dtype, 4, 2, 1, 16),
            drawn(case.dtype, 5, 2, 1, 16),
            drawn(case.weight_dtype, 6, 2, 1).expand(2, 4),
            drawn(case.dtype, 7, 2, 2, 4),
            None,
            None,
            True,
        )
        results.append((candidate(step), states))
    for name, found, right in zip(("output", "state"), *results):
        expected = right.float()
        difference = float("inf") if found is None else (found.float() - expected).norm()
        # A comparison that a NaN fails.
        if not bool(difference <= TRIAL_TOLERANCE * expected.norm()):
            raise RuntimeError(f"the {name} of a trial is wrong")


# Of the results of a trial, relative norms: it tells rounding from another operation.
TRIAL_TOLERANCE = 5e-2

OP: Op[Case, Implementation] = Op(
    "selective_state_update", str(__package__), ("cuda", "pytorch"), _trial
)


def _run(*arguments: Any) -> Tensor:
    """The operator for graphs that keep one, as ``make_fx`` does, at whatever sizes it is asked.

    What a compiler traces are tensor operations, which it joins to those around them.
    """
    return _computed(Step(*arguments), Way.KERNELS).contiguous()


def _fake(states: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x.new_empty(x.shape)


_OPERATOR = define(
    f"selective_state_update({STEP.schema.replace('Tensor ', 'Tensor(a!) ', 1)}) -> Tensor",
    _run,
    _fake,
)


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


def _fitted(
    name: str,
    tensor: Tensor,
    axes: dict[str, int],
    shape_of: Callable[[Tensor], tuple[int, ...]],
) -> Tensor:
    """The tensor with all of its axes, of which that of heads or groups may have been left out.

    Raises ValueError where its shape is another.
    """
    optional = "ngroups" if "ngroups" in axes else "nheads"
    shape = shape_of(tensor)
    if len(shape) == len(axes) - 1:
        tensor = tensor.unsqueeze(list(axes).index(optional))
        shape = shape_of(tensor)
    if shape != tuple(axes.values()):
        meaning = ", ".join(f"{axis}={size}" for axis, size in axes.items())
        raise ValueError(
            f"{name}: expected shape ({meaning}), where {optional} may be left out if it is 1, "
            f"found {tuple(shape)}"
        )
    return tensor


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tensor.shape
