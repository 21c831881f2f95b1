"""The core of a mixer, which is what lies between its two projections, without a graph.

In a compiled graph it is one operator. Made of several, the gradients of the parts of zxbcdt and of
xBC would be copied to where they belong; here each step writes its own there. What a step is
computed by is a backend's.
"""

from __future__ import annotations

from typing import Callable, Mapping, NamedTuple, Sequence, Tuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import without_autocast
from jetson_mamba.dispatch.fields import Tensors
from jetson_mamba.replay.passes import by_graphs

from .contract import MIXER, Core, CoreGradients, Mixer, Scan, ScanGradients
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


class Passes:
    """A core's two passes by the steps of a backend, each by a CUDA graph where that is small."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._forward, self._backward = by_graphs(MIXER, 2, self._run_forward, self._run_back)

    def forward(self, given: Mixer) -> Core:
        """As :func:`forward`."""
        run = self._run_forward if _memory_is_somebodys() else self._forward
        results, kept = run(given)
        return Core._make((*results, *kept))

    def backward(
        self, given: Mixer, kept: Core, dout: Tensor, dfinal_states: Tensor | None
    ) -> CoreGradients:
        """As :func:`backward`."""
        run = self._run_back if _memory_is_somebodys() else self._backward
        found = run(given, (kept.xBC, kept.scanned, kept.rstd), (dout, dfinal_states))
        return CoreGradients._make(map(found.get, CoreGradients._fields))

    def _run_forward(self, given: Mixer) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        found = forward(given, self._steps)
        return found[:2], found[2:]

    def _run_back(
        self, given: Mixer, kept: Sequence[Tensor], dresults: Tensors
    ) -> Mapping[str, Tensor | None]:
        xBC, scanned, rstd = kept
        dout, dfinal_states = dresults
        assert dout is not None
        # Of a core nothing else is looked at.
        again = Core(scanned, scanned, xBC, scanned, rstd)
        return backward(given, again, dout, dfinal_states, self._steps)._asdict()


def _memory_is_somebodys() -> bool:
    """Whether a graph that were made now might lie in a pool of the compiler's.

    Before Inductor captures a compiled graph, it runs that once with memory of the pool that it
    captures into, and under a default device, which is a mode.
    """
    modes: int = torch._C._len_torch_function_stack()
    return modes > 0


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
