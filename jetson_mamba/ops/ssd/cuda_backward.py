"""The gradients of Mamba-2's scan by the project's own CUDA kernels.

The states before the chunks and the gradients of those after them are made first, in one launch
for both directions of time; then each block makes what its chunk and heads give, and where heads
were shared out over blocks, their sums are added up. What is decided of this for calls that are
alike is in a plan, as in :mod:`.cuda_forward`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import (
    MOST_PLANS,
    VECTOR_BYTES,
    address,
    processors,
    strides_of,
)

from . import cuda_forward as forward
from .contract import Scan, ScanGradients
from .cuda_arguments import aligned, likeness, limits_of, options_of, prepared, rows

SUM_COLUMNS, SUM_THREADS = 32, 256


class Targets(NamedTuple):
    """Where the gradients of the long arguments are written: any strides but the last's."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor


class BackwardPlan(NamedTuple):
    """What all backward passes share whose tensors differ in nothing but their addresses."""

    # Whether the gradients are made in the dtypes and with the strides that they are wanted in.
    writes_targets: bool
    # Numbers of the states kept, and floats of what else is of use in the pass alone.
    kept: int
    ends: int
    decays: int
    weights: int
    slot_sums: int
    steps: int
    # Floats of the gradients of A, dt_bias and D.
    pieces: tuple[int, int, int]
    states_launch: compiler.Launch
    states_constants: tuple[int, ...]
    pass_launch: compiler.Launch | None
    pass_constants: tuple[int, ...]
    launch: compiler.Launch
    constants: tuple[int, ...]
    sum_launch: compiler.Launch
    sum_constants: tuple[int, ...]


_plans: Memo[tuple[Any, ...], BackwardPlan] = Memo(MOST_PLANS)


def backward(
    given: Scan, dout: Tensor, dstate: Tensor | None, targets: Targets | None = None
) -> ScanGradients:
    """The gradients of a scan without z; those of x, dt, B and C in ``targets`` where given."""
    index = given.x.get_device()
    if compiler.current_device() != index:
        with torch.cuda.device(index):
            return backward(given, dout, dstate, targets)
    scan = prepared(given._replace(z=None))
    x, dt, A, B, C, first = scan.x, scan.dt, scan.A, scan.B, scan.C, scan.initial_states
    dout = rows(dout, x.dtype)
    dlast = None if dstate is None else dstate.float().contiguous()
    if targets is None:
        targets = Targets(
            *(
                torch.empty(each.shape, dtype=each.dtype, device=each.device)
                for each in (given.x, given.dt, given.B, given.C)
            )
        )
    addresses = (
        x.data_ptr(),
        dout.data_ptr(),
        dt.data_ptr(),
        A.data_ptr(),
        B.data_ptr(),
        C.data_ptr(),
    )
    is_aligned = not (
        (addresses[0] | addresses[1] | addresses[4] | addresses[5] | targets.x.data_ptr())
        % VECTOR_BYTES
    )
    key = (
        is_aligned,
        index,
        dout.stride(),
        *likeness(scan),
        *(each for target in targets for each in (target.stride(), target.dtype)),
    )
    known = _plans.find(key)
    if known is None:
        wanted = targets
        compiler.begin(lambda: _plan(scan, dout, wanted, is_aligned, index), index)
        plan = _plans.put(key, _plan(scan, dout, targets, is_aligned, index))
    else:
        known.used = _plans.clock()
        plan = known.value
    written = targets
    if not plan.writes_targets:
        written = Targets(
            *(
                torch.empty(each.shape, dtype=each.dtype, device=each.device)
                for each in (x, dt, B, C)
            )
        )
    batch, _, nheads, headdim = x.shape
    kept = torch.empty((plan.kept,), dtype=x.dtype, device=x.device)
    dfirst = None
    if first is not None:
        # Of both directions: what comes after the last chunk, and before the first.
        dfirst = torch.empty(
            (2, batch, nheads, headdim, B.shape[3]), dtype=torch.float32, device=x.device
        )
    scratch = torch.empty(
        (plan.ends + plan.decays + plan.slot_sums + plan.weights + plan.steps,),
        dtype=torch.float32,
        device=x.device,
    )
    total = torch.empty((sum(plan.pieces),), dtype=torch.float32, device=x.device)
    ends = scratch.data_ptr()
    decays = ends + 4 * plan.ends
    slot_sums = decays + 4 * plan.decays
    weights = slot_sums + 4 * plan.slot_sums
    steps = weights + 4 * plan.weights
    stream = compiler.current_stream(index)
    bias, sequence = address(scan.dt_bias), address(scan.seq_idx)
    starts = (address(first), address(dlast))
    if plan.pass_launch is None:
        states = (*starts, 0, 0, kept.data_ptr(), steps, address(dfirst))
        plan.states_launch(stream, *addresses, bias, sequence, *states, *plan.states_constants)
    else:
        states = (0, 0, ends, decays, 0, steps, 0)
        plan.states_launch(stream, *addresses, bias, sequence, *states, *plan.states_constants)
        passed = (*starts, ends, decays, kept.data_ptr(), address(dfirst))
        plan.pass_launch(stream, *passed, *plan.pass_constants)
    plan.launch(
        stream,
        *(*addresses[:2], *addresses[3:]),
        address(scan.D),
        kept.data_ptr(),
        steps,
        *(each.data_ptr() for each in written),
        slot_sums,
        weights,
        *plan.constants,
    )
    plan.sum_launch(
        stream,
        weights,
        total.data_ptr(),
        slot_sums,
        written.B.data_ptr(),
        written.C.data_ptr(),
        *plan.sum_constants,
    )
    if written is not targets:
        for target, each in zip(targets, written):
            target.copy_(each)
    dA, ddt_bias, dD = total.split_with_sizes(plan.pieces)
    return ScanGradients(
        targets.x,
        targets.dt,
        dA.to(given.A.dtype),
        targets.B,
        targets.C,
        None if given.D is None else dD.view(given.D.shape).to(given.D.dtype),
        None if given.dt_bias is None else ddt_bias.to(given.dt_bias.dtype),
        None
        if given.initial_states is None or dfirst is None
        else dfirst[1].to(given.initial_states.dtype),
    )


def begin(given: Scan) -> None:
    """Compile, beside what else is done, what the gradients of a scan without z will take."""
    scan = prepared(given._replace(z=None))
    index = scan.x.get_device()
    targets = Targets(scan.x, scan.dt, scan.B, scan.C)
    is_aligned = not (scan.x.data_ptr() | scan.B.data_ptr() | scan.C.data_ptr()) % VECTOR_BYTES
    compiler.begin(lambda: _plan(scan, scan.x, targets, is_aligned, index), index)


def _plan(
    scan: Scan,
    dout: Tensor,
    targets: Targets,
    is_aligned: bool,
    index: int,
) -> BackwardPlan:
    x, dt, B, C, D, seq_idx = scan.x, scan.dt, scan.B, scan.C, scan.D, scan.seq_idx
    batch, seqlen, nheads, headdim = x.shape
    groups, dstate = B.shape[2:]
    writes_targets = all(
        target.dtype == each.dtype and (target.stride(-1) == 1 or each is dt)
        for target, each in zip(targets, (x, dt, B, C))
    )
    written = targets
    if not writes_targets:
        written = Targets(
            *(torch.empty(each.shape, dtype=each.dtype, device="meta") for each in (x, dt, B, C))
        )
    variant = forward.variant_of(scan, is_aligned, index)
    fits = variant.aligned and aligned(dout, written.x)
    variant = variant._replace(aligned=fits)
    size = headdim * dstate
    chunks = -(-seqlen // variant.chunk)
    by_warpgroups = forward.has_warpgroups(index) and variant.fits_warpgroups and headdim == 64
    walks = walks_along_time(chunks, batch * nheads * variant.slices, index, by_warpgroups)
    segment, segments = (chunks, 1) if walks else (1, chunks)
    per_group = nheads // groups
    slots = slots_of(per_group, batch * chunks * groups, index)
    per_slot = -(-per_group // slots)
    slots = -(-per_group // per_slot)
    scalars = (options_of(scan), *limits_of(scan))
    sequence = strides_of(seq_idx, 2)
    inputs = (*x.stride()[:3], *dout.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3])
    # These leave the states as their products read them.
    states_kernel = "ssd_backward_states" if by_warpgroups else "ssd_states"
    exchanged = (("EXCHANGED", "1"),) if by_warpgroups else ()
    states_launch, divided = variant.divided(
        states_kernel, batch, nheads, groups, 2 * segments, index
    )
    pass_launch = None
    if not walks:
        pass_launch = variant.launch(
            "ssd_pass", (-(-size // forward.PASS_THREADS), batch * nheads, 2), index, exchanged
        )
    kernel = "ssd_backward_warpgroups" if by_warpgroups else "ssd_backward"
    launch = variant.launch(kernel, (chunks, batch, groups * slots), index)
    dD = 0 if D is None else D.numel()
    row = nheads * 2 + dD
    weight_blocks = -(-row // SUM_COLUMNS)
    matrix = B.numel()
    sum_blocks = -(-2 * matrix // SUM_THREADS) if slots > 1 else 0
    return BackwardPlan(
        writes_targets,
        2 * batch * chunks * nheads * size,
        0 if walks else 2 * batch * nheads * segments * size,
        0 if walks else 2 * batch * nheads * segments,
        batch * chunks * row,
        2 * slots * matrix if slots > 1 else 0,
        batch * nheads * chunks * variant.chunk * variant.kept_arrays,
        (nheads, nheads, dD),
        states_launch,
        (*scalars, seqlen, nheads, per_group, segment, segments, *inputs, *sequence, *divided),
        pass_launch,
        (nheads, segments),
        launch,
        (
            *(scalars[0], seqlen, nheads, per_group, per_slot, slots),
            *(*x.stride()[:3], *dout.stride()[:3], *B.stride()[:3], *C.stride()[:3]),
            *written.x.stride()[:3],
            *written.dt.stride(),
            *written.B.stride()[:3],
            *written.C.stride()[:3],
        ),
        variant.launch("ssd_sums", (weight_blocks + sum_blocks, 1, 1), index),
        (
            *(batch * chunks, row, weight_blocks, slots, seqlen, groups, batch),
            *written.B.stride()[:3],
            *written.C.stride()[:3],
        ),
    )


@lru_cache(maxsize=1024)
def walks_along_time(chunks: int, blocks: int, index: int, by_warpgroups: bool) -> bool:
    """Whether blocks go from chunk to chunk, there being enough; else each has its own.

    By products of warpgroups a chunk takes so little that few are enough.
    """
    return chunks == 1 or (6 if by_warpgroups else 2) * blocks >= processors(index)


@lru_cache(maxsize=1024)
def slots_of(heads: int, blocks: int, index: int) -> int:
    """Blocks that share the heads of a group, so that the GPU is filled."""
    return max(1, min(heads, processors(index) // blocks))
