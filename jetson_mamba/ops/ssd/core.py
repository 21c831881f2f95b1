"""The core of a mixer, which is what lies between its two projections, without a graph.

In a compiled graph it is one operator. Made of several, the gradients of the parts of zxbcdt and of
xBC would be copied to where they belong; here each step writes its own there. What a step is
computed by is a backend's.
"""

from __future__ import annotations

from typing import Callable, NamedTuple, Tuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import without_autocast

from . import gated_norm
from .contract import Core, CoreGradients, Mixer, Scan, ScanGradients
from .gates import GatedRMSNorm
from .mixer import (
    Columns,
    convolved_back,
    convolved_by_kernels,
    inner_scan,
    norm_of,
    split_columns,
    split_heads,
)

# Where the gradients of x, dt, B and C are written to.
ScanTargets = Tuple[Tensor, Tensor, Tensor, Tensor]


class Steps(NamedTuple):
    """What a backend provides: what follows the convolution, and its gradients."""

    # Of a mixer, its columns and xBC: out, final_states, scanned and rstd, as Core has them.
    forward: Callable[[Mixer, Columns, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]
    # Of the norm, the core, z and the gradient of out, (batch, seqlen, dim): the gradients of
    # scanned and of the weight. That of z is written to the last argument.
    norm_backward: Callable[[GatedRMSNorm, Core, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    scan_backward: Callable[[Scan, Tensor, Tensor | None, ScanTargets], ScanGradients]


def steps_of(
    scan: Callable[[Scan], tuple[Tensor, Tensor]],
    scan_backward: Callable[[Scan, Tensor, Tensor | None, ScanTargets], ScanGradients],
) -> Steps:
    """A backend's steps made of its scan, output and last state, and of this project's norm."""

    def following(
        given: Mixer, columns: Columns, xBC: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        norm = norm_of(given)
        assert norm is not None
        scanned, state = scan(inner_scan(given, columns, xBC, gated=False))
        out, rstd = gated_norm.forward(norm, scanned.flatten(2), columns.z, with_rstd=True)
        assert rstd is not None
        return out, state, scanned, rstd

    def norm_backward(
        norm: GatedRMSNorm, kept: Core, z: Tensor, dout: Tensor, dz: Tensor
    ) -> tuple[Tensor, Tensor]:
        dscanned, dweight, _ = gated_norm.backward(norm, kept.scanned.flatten(2), z, dout, dz)
        return dscanned.view(kept.scanned.shape), dweight

    return Steps(following, norm_backward, scan_backward)


@torch.no_grad()
def forward(given: Mixer, steps: Steps) -> Core:
    """The core of a mixer that has a norm, and neither an MLP nor initial states."""
    with without_autocast(given.zxbcdt.device):
        columns = split_columns(given, given.zxbcdt)
        xBC = convolved_by_kernels(given, columns).contiguous()
        out, final_states, scanned, rstd = steps.forward(given, columns, xBC)
        return Core(out, final_states, xBC, scanned, rstd)


@torch.no_grad()
def backward(
    given: Mixer, kept: Core, dout: Tensor, dfinal_states: Tensor | None, steps: Steps
) -> CoreGradients:
    """The gradients of :func:`forward`, which gave ``kept``."""
    norm, whole = norm_of(given), given.zxbcdt
    assert norm is not None
    columns = split_columns(given, whole)
    dwhole = torch.empty(whole.shape, dtype=whole.dtype, device=whole.device)
    dcolumns = split_columns(given, dwhole)
    dxBC = torch.empty_like(kept.xBC)
    dx, dB, dC = split_heads(given, dxBC)
    with without_autocast(whole.device):
        dscanned, drmsnorm_weight = steps.norm_backward(norm, kept, columns.z, dout, dcolumns.z)
        scan = steps.scan_backward(
            inner_scan(given, columns, kept.xBC, gated=False),
            dscanned,
            dfinal_states,
            (dx, dcolumns.dt, dB, dC),
        )
        dweight, dbias = convolved_back(given, columns, dxBC, dcolumns)
    assert scan.D is not None and scan.dt_bias is not None
    return CoreGradients(
        dwhole, dweight, dbias, scan.dt_bias, scan.A, scan.D, drmsnorm_weight.to(norm.weight.dtype)
    )
