"""What is as short as dt of a scan in bfloat16, put together by CUDA graphs.

The factors that ``narrow`` multiplies by are found before its products, and the gradients of dt and
of what is shorter after them. Each is many operations on few numbers, of which the CPU would launch
one after another for longer than the GPU works.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from jetson_mamba.replay.captured import Captured, Weights

from .block import LEAST_STEP
from .contract import Scan
from .steps import finite, slope, steps_taken

WIDE, NARROW = torch.float32, torch.bfloat16
# A step that decays a state by exp(-104) leaves nothing of it in float32. Differences of sums of
# larger ones would lose their digits.
MOST_DECAY = 104.0
# Elements to which the rows of matrices are filled up: other products are far slower.
ALIGNED = 8


class _Decays:
    """The steps of a block and their decays, (k, b, g, r, q), in float64 but for the steps."""

    def __init__(self, inputs: tuple[Tensor, ...], options: tuple[Any, ...]) -> None:
        has_bias, has_D, groups, size, dt_limit = options
        rest = [*inputs]
        dt, A = rest.pop(0), rest.pop(0)
        bias = rest.pop(0) if has_bias else None
        self.D = rest.pop(0) if has_D else None
        self.others = rest
        self.scan = Scan(
            *(dt, dt, A, dt, dt, self.D, None, bias),
            *(None, None, None, size, True, dt_limit),
        )
        self.shape = (dt.shape[0], dt.shape[1] // size, size, groups, A.shape[0] // groups)
        steps = steps_taken(self.scan).to(WIDE).reshape(self.shape)
        self.steps = steps.permute(1, 0, 3, 4, 2).contiguous()
        self.A = finite(A.double()).view(groups, -1, 1)
        self.log = (self.steps * self.A).clamp_(min=-MOST_DECAY).cumsum(-1)
        self.last = self.log[..., -1:]
        self.enter, self.leave = self.log.exp(), (self.last - self.log).exp()
        self.lengths = self.steps.clamp(min=LEAST_STEP)
        lengths = self.lengths.double().log_()
        self.sources = self.log - lengths
        # All steps of a head decay its state, or all let it grow.
        greatest = lengths.amax(-1, keepdim=True) + self.last.clamp(min=0)
        self.power = (greatest / math.log(2.0)).ceil_()
        # As a state passes from each source, the first of which is after the first chunk, to each
        # end: (b, g, r, k + 1, k + 1).
        total = functional.pad(self.last.squeeze(-1).cumsum(0), (0, 0) * 3 + (1, 0))
        total = total.permute(1, 2, 3, 0)
        sources = total.roll(-1, -1)
        passing = (total.unsqueeze(-1) - sources.unsqueeze(-2)).exp_()
        # The upper half is left out after exp: there the difference is positive.
        self.passing = passing.tril_(-1)
        self.passing[..., -1] = total.exp()


def ends_of(chunks: int) -> int:
    """The ends of that many chunks, filled up."""
    return -(-(chunks + 1) // ALIGNED) * ALIGNED


def factors(inputs: tuple[Tensor, ...], _: Weights, *options: Any) -> tuple[Tensor, ...]:
    """What a block is multiplied by, of dt (batch, steps, nheads), A, dt_bias and D: in float32 and
    in bfloat16, one after another, as ``narrow`` takes them apart."""
    found = _Decays(inputs, options)
    scale = found.power.exp2()
    own = torch.zeros_like(scale)
    if found.D is not None:
        own = found.D.double().view(found.A.shape) / scale
    chunks = len(found.steps)
    # From each chunk to the end of the block.
    to_end = found.passing[..., -1, :-1].permute(3, 0, 1, 2).unsqueeze(-1)
    lasting = (found.leave * found.steps * to_end).permute(1, 2, 0, 4, 3)
    wide = (
        found.log - found.power * math.log(2.0),
        found.sources,
        lasting,
        own,
        found.passing[..., -1, -1],
    )
    missing = ends_of(chunks) - chunks - 1
    along = (found.enter, found.leave * found.steps)
    narrow = (
        *(each.transpose(3, 4) for each in along),
        scale,
        functional.pad(found.passing, (0, missing, 0, missing)),
    )
    return tuple(
        torch.cat([each.flatten() for each in parts]).to(dtype)
        for parts, dtype in ((wide, WIDE), (narrow, NARROW))
    )


def slopes(inputs: tuple[Tensor, ...], _: Weights, *options: Any) -> tuple[Tensor, ...]:
    """The gradients of dt (batch, steps, nheads), and of A, D and dt_bias, (3, nheads).

    After dt, A and what there is of dt_bias and D come the gradients of the factors: ``reads`` and
    ``sends`` (k, b, q, g, r) of ``enter`` and ``sending``; of pairs of steps what a step has of
    itself (k, b, g, r, q) over scale, times ``scores`` (k, b, g, 1, q), and the sums (k, b, g, r,
    q) of the others over the earlier and over the later step; and that of ``passing`` (b g r,
    ends, sent).
    """
    found = _Decays(inputs, options)
    reads, sends, alone, scores, rows, columns, through = found.others
    reads, sends = (each.permute(0, 1, 3, 4, 2) for each in (reads, sends))
    alone = alone / found.power.exp2()
    ddt = columns / found.lengths + alone * scores + sends * found.leave
    # Each came through the decays of the steps that it crosses. The sums over rows and columns are
    # of the same numbers, of which those cancel that do not.
    back = rows.double() - columns + reads * found.enter
    dlog = back.flip(-1).cumsum(-1).flip(-1)
    dlog[..., 1:] += (sends * found.leave * found.steps).cumsum(-1)[..., :-1]
    ends, sent = through.shape[-2:]
    chunks = len(found.steps)
    passed = through.view(*found.passing.shape[:3], ends, sent) * found.passing[..., :ends, :sent]
    flow = functional.pad(passed.sum(-1), (0, chunks + 1 - ends))
    flow[..., 1:] -= passed.sum(-2)[..., :chunks]
    crossing = flow.flip(-1).cumsum(-1).flip(-1)[..., 1:]
    dlog += crossing.permute(3, 0, 1, 2).unsqueeze(-1)
    ddt = ddt + dlog * found.A
    dA = (dlog * found.steps).sum((0, 1, 4))
    ddt = ddt.permute(1, 0, 4, 2, 3).reshape(inputs[0].shape) * slope(found.scan)
    sums = (dA.flatten(), alone.sum((0, 1, 4)).flatten(), ddt.sum((0, 1)))
    return ddt.to(WIDE), torch.stack([each.to(WIDE) for each in sums])


FACTORS, SLOPES = Captured(factors), Captured(slopes)
