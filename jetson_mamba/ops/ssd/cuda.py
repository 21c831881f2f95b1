"""The ssd op by the project's own CUDA kernels (``kernels/ssd_*.cu``).

The scan and its gradients are kernels; of a mixer, what lies around the scan is made of the steps
that every backend takes. Nothing is kept between the passes but the arguments: the states at the
chunks are made once more. Every result is the same in every run.
"""

from __future__ import annotations

from typing import Hashable, Mapping, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.autocast import autocast_dtype, without_autocast
from jetson_mamba.dispatch.computation import Computation
from jetson_mamba.dispatch.fields import Tensors
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import NUMBERS
from jetson_mamba.replay.passes import by_graphs

from . import chunks, composed, core, cuda_backward, cuda_forward, gated_norm
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
from .gates import gate, swiglu
from .mixer import (
    compose,
    convolved_by_kernels,
    inner_scan,
    mlp_columns,
    norm_of,
    project,
    split_columns,
)

LEAST_CAPABILITY = (8, 0)
# States up to which the kernels have registers and shared memory, in 16 bits and in 32.
MOST_STATES = {torch.float32: 128, torch.float16: 256, torch.bfloat16: 256}
KERNELS = ("ssd_forward", "ssd_states", "ssd_backward")


def load(case: Case) -> Implementation:
    """The kernels for a case; raises :class:`Unavailable` where they do not apply."""
    device, number = case.device, case.number
    if device.type != "cuda":
        raise Unavailable(f"made for CUDA devices, not for {device.type}")
    if torch.version.hip is not None:
        raise Unavailable("made for NVIDIA GPUs")
    if case.dtype != torch.float32 or number not in NUMBERS:
        other = number if case.dtype == torch.float32 else case.dtype
        raise Unavailable(f"made for float32, float16 and bfloat16, not for {other}")
    if case.rounds_states:
        raise Unavailable("keeps no states between chunks that could be rounded")
    most = MOST_STATES[number]
    if case.dstate > most:
        raise Unavailable(f"made for dstate up to {most} of {number}, not {case.dstate}")
    index = device.index or 0
    capability = torch.cuda.get_device_capability(index)
    if capability < LEAST_CAPABILITY:
        raise Unavailable("made for GPUs of compute capability 8.0 or more")
    room = cuda_forward.room(index)
    variant = cuda_forward.Variant(number, case.headdim, case.dstate, False, room)
    needed = max(variant.shared_bytes(kernel) for kernel in KERNELS)
    if needed > room:
        raise Unavailable(f"needs {needed} bytes of shared memory, of which a block has {room}")
    compiler.require()
    return IMPLEMENTATION


def scan(given: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """Output, last state, and with ``cu_seqlens`` the state at the end of each sequence."""
    out, state, states = _SCAN(given._replace(z=None))
    if given.z is not None:
        out = gate(out, given.z).to(out.dtype)
    return out, state, states


def mixer(given: Mixer) -> tuple[Tensor, Tensor]:
    """Output after norm, gate and projection, and the last state of the scan."""
    projection_dtype = autocast_dtype(given.zxbcdt.device)
    if given.rmsnorm_weight is None or given.initial_states is not None or mlp_columns(given):
        return compose(given, lambda inner: scan(inner)[:2], projection_dtype)
    out, state = _MIXER(given._replace(outproj_weight=None, outproj_bias=None))
    with without_autocast(given.zxbcdt.device):
        return project(given, out, projection_dtype), state


def scan_forward(given: Scan) -> tuple[Tensor, Tensor, Tensor | None]:
    """What :func:`scan` returns, without a graph."""
    with without_autocast(given.x.device):
        out, state = cuda_forward.forward(given)
        states = None
        if given.cu_seqlens is not None:
            states = chunks.varlen_states(given, given.cu_seqlens.tolist())
    return out, state, states


def scan_backward(given: Scan, dout: Tensor, dstate: Tensor | None) -> ScanGradients:
    """The gradients of a scan without z."""
    with without_autocast(given.x.device):
        return cuda_backward.backward(given, dout, dstate)


def mixer_forward(given: Mixer) -> tuple[Tensor, Tensor]:
    """What :func:`mixer` returns, without a graph."""
    whole = given.zxbcdt
    projection_dtype = autocast_dtype(whole.device)
    with without_autocast(whole.device):
        out, state, _ = _mixed(given)
        if mlp_columns(given):
            mlp = split_columns(given, whole).mlp
            out = torch.cat([swiglu(mlp).to(out.dtype), out], dim=-1)
        return project(given, out, projection_dtype), state


def core_forward(given: Mixer) -> Core:
    """The core of a mixer with a norm."""
    return core.forward(given, _STEPS)


def core_backward(given: Mixer, kept: Core, dout: Tensor, dstate: Tensor | None) -> CoreGradients:
    """The gradients of a core."""
    return core.backward(given, kept, dout, dstate, _STEPS)


IMPLEMENTATION = Implementation(
    *(scan, mixer, scan_forward, scan_backward, mixer_forward, core_forward, core_backward),
    comes_before_triton=True,
)


def _mixed(given: Mixer, *, is_recorded: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Of what follows the convolution: output, last state, and what a norm was given."""
    columns = split_columns(given, given.zxbcdt)
    norm = norm_of(given)
    inner = inner_scan(given, columns, convolved_by_kernels(given, columns), gated=norm is None)
    scanned, state = cuda_forward.forward(inner)
    if is_recorded:
        _begin_back(inner)
    out = scanned.flatten(2)
    if norm is not None:
        out, _ = gated_norm.forward(norm, out, columns.z)
    return out, state, scanned


def _core_scan_backward(
    given: Scan, dout: Tensor, dstate: Tensor | None, targets: core.ScanTargets
) -> ScanGradients:
    return cuda_backward.backward(given, dout, dstate, cuda_backward.Targets(*targets))


_STEPS = core.steps_of(cuda_forward.forward, _core_scan_backward)


# Variants whose gradients have been begun to be compiled.
_begun: set[Hashable] = set()


def _begin_back(scan: Scan) -> None:
    """Compile what the gradients will take, at the first pass of a kind."""
    kind = (scan.case, scan.seq_idx is None, None if scan.D is None else scan.D.dim())
    if kind not in _begun:
        _begun.add(kind)
        cuda_backward.begin(scan)


def _passes_forward(
    given: Scan,
) -> tuple[tuple[Tensor, Tensor, Tensor | None], Sequence[Tensor]]:
    found = scan_forward(given)
    _begin_back(given)
    return found, ()


def _passes_back(
    given: Scan, kept: Sequence[Tensor], dresults: Tensors
) -> Mapping[str, Tensor | None]:
    refuse_varlen_states(given)
    dout, dstate, _ = dresults
    dout = torch.zeros_like(given.x) if dout is None else dout
    return scan_backward(given, dout, dstate)._asdict()


_SCAN = Computation(SCAN, _passes_forward, _passes_back, composed.scan)


def _mixer_passes_forward(given: Mixer) -> tuple[tuple[Tensor, Tensor], Sequence[Tensor]]:
    with without_autocast(given.zxbcdt.device):
        out, state, scanned = _mixed(given, is_recorded=True)
    return (out, state), (scanned,)


def _mixer_passes_back(
    given: Mixer, kept: Sequence[Tensor], dresults: Tensors
) -> Mapping[str, Tensor | None]:
    (scanned,) = kept
    dout, dstate = dresults
    # Made again: it is as large as the input.
    columns = split_columns(given, given.zxbcdt)
    xBC = convolved_by_kernels(given, columns).contiguous()
    # Of a core nothing else is looked at.
    again = Core(scanned, scanned, xBC, scanned, scanned)
    dout = torch.zeros_like(scanned.flatten(2)) if dout is None else dout
    return core.backward(given, again, dout, dstate, _STEPS)._asdict()


_MIXER = Computation(
    MIXER,
    *by_graphs(MIXER, 2, _mixer_passes_forward, _mixer_passes_back),
    lambda given: composed.mixer(given, None),
)
