"""The ssd op in PyTorch, for every device: autograd around the chunked matrix products.

The mixer is one autograd function and not a chain of them: what it keeps is its input, the
scan's output and the states between blocks of chunks. Convolution, norm and gates are computed
again in the backward pass.
"""

from __future__ import annotations

from typing import Mapping, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import autocast_dtype, without_autocast
from jetson_mamba.dispatch.computation import Computation
from jetson_mamba.dispatch.fields import Tensors
from jetson_mamba.replay.passes import by_graphs

from . import chunks, composed, core, divided, gated_norm, narrow
from .block import operand_dtype
from .contract import (
    MIXER,
    SCAN,
    Case,
    Core,
    CoreGradients,
    Implementation,
    Mixer,
    Scan,
    ScanGradients,
    refuse_varlen_states,
)
from .gates import swiglu, swiglu_backward
from .mixer import (
    Columns,
    convolved_back,
    convolved_by_kernels,
    inner_scan,
    norm_of,
    project,
    split_columns,
    split_heads,
)


def load(case: Case) -> Implementation:
    """The implementation; there is no device that it does not serve."""
    return IMPLEMENTATION


def scan(arguments: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, last state, and with ``cu_seqlens`` the state at the end of each sequence."""
    out, state, states = _SCAN(arguments)
    return out, state, states


def mixer(arguments: Mixer) -> tuple[Tensor, Tensor]:
    """Output after norm, gate and projection, and the last state of the scan."""
    out, state = _MIXER(arguments, autocast_dtype(arguments.zxbcdt.device))
    return out, state


def scan_forward(given: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """What :func:`scan` returns, without a graph."""
    out, state, states, _ = _scan_forward(given)
    return out, state, states


def scan_backward(given: Scan, dout: Tensor, dstate: Tensor | None) -> ScanGradients:
    """The gradients of a scan without z. The states between blocks are computed once more."""
    with without_autocast(given.x.device):
        return _scan_backward(given, divided.states(given), dout, dstate, _new_targets(given))


def mixer_forward(given: Mixer) -> tuple[Tensor, Tensor]:
    """What :func:`mixer` returns, without a graph."""
    out, state, _, _ = _mixer_forward(given, autocast_dtype(given.zxbcdt.device))
    return out, state


def core_forward(given: Mixer) -> Core:
    """The core of a mixer with a norm."""
    return core.forward(given, _STEPS)


def core_backward(given: Mixer, kept: Core, dout: Tensor, dstate: Tensor | None) -> CoreGradients:
    """The gradients of a core. The states between blocks are computed once more."""
    return core.backward(given, kept, dout, dstate, _STEPS)


IMPLEMENTATION = Implementation(
    scan, mixer, scan_forward, scan_backward, mixer_forward, core_forward, core_backward
)


def _core_scan_backward(
    given: Scan, dout: Tensor, dstate: Tensor | None, targets: core.ScanTargets
) -> ScanGradients:
    return _scan_backward(
        given, divided.states(given), dout, dstate, chunks.Targets(*targets, None)
    )


_STEPS = core.steps_of(lambda scan: scan_forward(scan)[:2], _core_scan_backward)


def _scan_forward(given: Scan) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    out = torch.empty(given.x.shape, dtype=given.x.dtype, device=given.x.device)
    with without_autocast(given.x.device):
        state, kept = divided.forward(given, out)
        states = None
        if given.cu_seqlens is not None:
            states = chunks.varlen_states(given, given.cu_seqlens.tolist())
    return out, chunks.public_state(state, given), states, kept


def _new_targets(given: Scan) -> chunks.Targets:
    x, dt, B, C = (
        torch.empty(each.shape, dtype=each.dtype, device=each.device)
        for each in (given.x, given.dt, given.B, given.C)
    )
    return chunks.Targets(x, dt, B, C, None if given.z is None else torch.empty_like(given.z))


def _scan_backward(
    given: Scan,
    kept: Sequence[Tensor],
    dout: Tensor,
    dstate: Tensor | None,
    targets: chunks.Targets,
) -> ScanGradients:
    others = divided.backward(given, kept, dout, dstate, targets)
    return ScanGradients(
        x=targets.x,
        dt=targets.dt,
        A=others.A,
        B=targets.B,
        C=targets.C,
        D=others.D,
        dt_bias=others.dt_bias,
        initial_states=others.initial_states,
    )


def _scan_passes_forward(
    given: Scan,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], list[Tensor]]:
    out, state, states, kept = _scan_forward(given)
    return (out, state, states), kept


def _scan_passes_back(
    given: Scan, kept: Sequence[Tensor], dresults: Tensors
) -> Mapping[str, Tensor | None]:
    dout, dstate, _ = dresults
    refuse_varlen_states(given)
    if dout is None:
        dout = torch.zeros_like(given.x)
    targets = _new_targets(given)
    found = _scan_backward(given, kept, dout, dstate, targets)
    return {**found._asdict(), "z": targets.z}


def _mixer_forward(
    given: Mixer, projection_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor | None, list[Tensor]]:
    """Output, last state, and for the backward pass what the norm is given and the states."""
    whole = given.zxbcdt
    columns = split_columns(given, whole)
    norm = norm_of(given)
    with without_autocast(whole.device):
        inner = _widened(given, columns, convolved_by_kernels(given, columns))
        scanned = torch.empty(columns.z.shape, dtype=whole.dtype, device=whole.device)
        last, kept = divided.forward(inner, torch.unflatten(scanned, -1, (-1, given.headdim)))
        out = scanned
        if norm is not None:
            out, _ = gated_norm.forward(norm, scanned, columns.z)
        if columns.mlp.shape[-1] > 0:
            out = torch.cat([swiglu(columns.mlp).to(whole.dtype), out], dim=-1)
        out = project(given, out, projection_dtype)
    # Without a norm, what the gate was applied to is computed again beside the gradients.
    return out, chunks.public_state(last, inner), None if norm is None else scanned, kept


def _widened(given: Mixer, columns: Columns, xBC: Tensor) -> Scan:
    """The scan inside a mixer, on a GPU of tensors in the dtype of computation.

    Each layout of its parts would be converted again, by kernels that are half as fast.
    """
    gated = given.rmsnorm_weight is None
    inner = inner_scan(given, columns, xBC, gated=gated)
    if not xBC.is_cuda or narrow.serves(inner):
        return inner
    return inner_scan(given, columns, xBC.to(given.dtype), gated=gated)


def _mixer_passes_forward(
    given: Mixer, projection_dtype: torch.dtype | None
) -> tuple[tuple[Tensor, Tensor], list[Tensor]]:
    out, state, scanned, kept = _mixer_forward(given, projection_dtype)
    return (out, state), kept if scanned is None else [scanned, *kept]


def _mixer_passes_back(
    given: Mixer, kept: Sequence[Tensor], dresults: Tensors, projection_dtype: torch.dtype | None
) -> Mapping[str, Tensor | None]:
    dout, dstate = dresults
    whole, weight = given.zxbcdt, given.outproj_weight
    columns = split_columns(given, whole)
    dwhole = torch.empty_like(whole)
    dcolumns = split_columns(given, dwhole)
    norm = norm_of(given)
    mlp = columns.mlp.shape[-1] // 2
    scanned, states = None, kept
    if norm is not None:
        scanned, *states = kept
    drmsnorm = dweight = dbias = None

    # What the projection was given, filled in part by part where it is needed again.
    projected = whole.new_empty(*whole.shape[:2], mlp + columns.z.shape[-1])
    if dout is None:
        dprojected = torch.zeros_like(projected)
    elif weight is None:
        dprojected = dout
    else:
        dprojected = dout @ weight.to(dout.dtype)

    if mlp > 0:
        dmlp, recomputed = swiglu_backward(columns.mlp, dprojected[..., :mlp])
        dcolumns.mlp.copy_(dmlp)
        projected[..., :mlp] = recomputed
    dscanned = dprojected[..., mlp:]
    if norm is not None and scanned is not None:
        dscanned, drmsnorm, normed = gated_norm.backward(
            norm, scanned, columns.z, dscanned, dcolumns.z
        )
        if normed is None and weight is not None:
            normed = gated_norm.forward(norm, scanned, columns.z)[0]
        if normed is not None and mlp == 0:
            projected = normed
        elif normed is not None:
            projected[..., mlp:] = normed

    xBC = convolved_by_kernels(given, columns)
    inner = _widened(given, columns, xBC)
    # The dtype of what is multiplied, before it was widened.
    is_wider = inner.x.dtype != xBC.dtype
    operands = operand_dtype(inner_scan(given, columns, xBC, gated=False) if is_wider else inner)
    dxBC = torch.empty_like(columns.conv)
    dx, dB, dC = split_heads(given, dxBC)
    dz = torch.unflatten(dcolumns.z, -1, (-1, given.headdim)) if norm is None else None
    others = divided.backward(
        inner,
        states,
        torch.unflatten(dscanned, -1, (-1, given.headdim)),
        dstate,
        chunks.Targets(dx, dcolumns.dt, dB, dC, dz),
        out=torch.unflatten(projected[..., mlp:], -1, (-1, given.headdim)),
        operands=operands,
    )
    if weight is not None and dout is not None:
        rows = dout.flatten(0, 1)
        dweight = rows.t() @ projected.to(dout.dtype).flatten(0, 1)
        dbias = None if given.outproj_bias is None else rows.sum(0)
    dconv_weight, dconv_bias = convolved_back(given, columns, dxBC, dcolumns)
    return {
        "zxbcdt": dwhole,
        "conv1d_weight": dconv_weight,
        "conv1d_bias": dconv_bias,
        "dt_bias": others.dt_bias,
        "A": others.A,
        "D": others.D,
        "initial_states": others.initial_states,
        "rmsnorm_weight": drmsnorm,
        "outproj_weight": dweight,
        "outproj_bias": dbias,
    }


_SCAN = Computation(SCAN, _scan_passes_forward, _scan_passes_back, composed.scan)
_MIXER = Computation(
    MIXER, *by_graphs(MIXER, 2, _mixer_passes_forward, _mixer_passes_back), composed.mixer
)
