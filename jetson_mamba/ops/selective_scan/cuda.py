"""The selective scan by the project's own CUDA kernels (``kernels/selective_scan_*.cu``).

Here is what surrounds them. A *plan* (``plans``) is made once for calls whose tensors differ in
nothing but their addresses; a repeated call allocates and launches. Every result is the same in
every run: nothing is added atomically.

``x`` is finer than upstream's: a row is two times ``layout.interval`` steps, entry ``2 n`` the
state ``n`` in its middle and ``2 n + 1`` at its end. ``x[:, :, -1, 1::2]`` is the last state, as
upstream's. An ``x`` of another shape is made again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import MOST_PLANS, NUMBERS, VECTOR_BYTES, rows

from .contract import Case, Gradients, Implementation, Returning, Scan, Scanned
from .plans import (
    BackwardPlan,
    ForwardPlan,
    backward_plan,
    forward_plan,
    layout_of,
)

MAXIMUM_DSTATE = 256


def load(case: Case) -> Implementation:
    """The kernels for a case; raises :class:`Unavailable` where they do not apply."""
    if case.device.type != "cuda":
        raise Unavailable(f"made for CUDA devices, not for {case.device.type}")
    if case.dtype not in NUMBERS:
        raise Unavailable(f"made for float32, float16 and bfloat16, not for {case.dtype}")
    if case.dstate > MAXIMUM_DSTATE:
        raise Unavailable(f"made for dstate up to {MAXIMUM_DSTATE}, not {case.dstate}")
    if torch.version.hip is not None:
        raise Unavailable("made for NVIDIA GPUs")
    step = 2 * layout_of(case.dstate, case.is_complex).interval
    return Implementation(forward, backward, output, lambda seqlen: (seqlen + step - 1) // step)


_forward_plans: Memo[tuple[Any, ...], ForwardPlan] = Memo(MOST_PLANS)
_backward_plans: Memo[tuple[Any, ...], BackwardPlan] = Memo(MOST_PLANS)


def forward(scan: Scan) -> Scanned:
    """``out``, ``x`` and ``out_z``; see ``contract.py``."""
    out, x, out_z = _scanned(scan, kept=True)
    assert out is not None and x is not None
    return Scanned(out, x, out_z)


def output(scan: Scan) -> Tensor:
    """The final output alone; see ``contract.py``."""
    out, _, out_z = _scanned(scan, kept=False)
    final = out if out_z is None else out_z
    assert final is not None
    return final


def _scanned(scan: Scan, kept: bool) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """``out``, ``x`` and ``out_z``; what only a backward pass needs is None unless ``kept``."""
    u, delta, A, B, C, D, z, delta_bias, _ = scan
    index = u.get_device()
    if compiler.current_device() != index:
        with torch.cuda.device(index):
            return _scanned(scan, kept)
    addresses = (
        u.data_ptr(),
        delta.data_ptr(),
        A.data_ptr(),
        B.data_ptr(),
        C.data_ptr(),
        0 if D is None else D.data_ptr(),
        0 if z is None else z.data_ptr(),
        0 if delta_bias is None else delta_bias.data_ptr(),
    )
    is_aligned = not (
        (addresses[0] | addresses[1] | addresses[3] | addresses[4] | addresses[6]) % VECTOR_BYTES
    )
    key = (kept, is_aligned, index, *_likeness(scan))
    known = _forward_plans.find(key)
    if known is None:
        packed = _packed(scan)
        if packed is not scan:
            return _scanned(packed, kept)
        plan = _forward_plans.put(key, forward_plan(scan, kept, is_aligned, index))
    else:
        known.used = _forward_plans.clock()
        plan = known.value
    out = x = out_z = scratch = None
    if kept or z is None:
        out = torch.empty_like(delta, memory_format=plan.out_format)
    if z is not None:
        out_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    if kept:
        x = A.new_empty(plan.x_shape)
    carry = carry_times = 0
    if plan.carried:
        scratch = _floats(u, plan.carried + plan.carried_times)
        carry = scratch.data_ptr()
        carry_times = carry + 4 * plan.carried
    arguments = (
        *addresses,
        0 if out is None else out.data_ptr(),
        0 if out_z is None else out_z.data_ptr(),
        0 if x is None else x.data_ptr(),
        carry,
        carry_times,
        *plan.constants,
    )
    stream = compiler.current_stream(index)
    for launch in plan.launches:
        launch(stream, *arguments)
    return out, x, out_z


def backward(scan: Scan, returning: Returning) -> Gradients:
    """The gradients of a scan's arguments, and ``out_z``; see ``contract.py``."""
    u, delta, A, B, C, D, z, delta_bias, _ = scan
    dout, x, out, dz, recompute_out_z = returning
    index = u.get_device()
    if compiler.current_device() != index:
        with torch.cuda.device(index):
            return backward(scan, returning)
    if z is None:
        out = dz = None
    elif out is None:
        out = output(scan._replace(z=None))
    addresses = (
        u.data_ptr(),
        delta.data_ptr(),
        A.data_ptr(),
        B.data_ptr(),
        C.data_ptr(),
        0 if D is None else D.data_ptr(),
        0 if z is None else z.data_ptr(),
        0 if delta_bias is None else delta_bias.data_ptr(),
        dout.data_ptr(),
    )
    out_address = 0 if out is None else out.data_ptr()
    is_aligned = not (
        (
            addresses[0]
            | addresses[1]
            | addresses[3]
            | addresses[4]
            | addresses[6]
            | addresses[8]
            | out_address
            | (0 if dz is None else dz.data_ptr())
        )
        % VECTOR_BYTES
    )
    key = (
        is_aligned,
        recompute_out_z,
        index,
        *_likeness(scan),
        dout.stride(),
        None if out is None else out.stride(),
        None if dz is None else dz.stride(),
    )
    known = _backward_plans.find(key)
    if known is None:
        packed = _packed(scan)
        given = returning._replace(dout=rows(dout), out=None if out is None else rows(out))
        if packed is not scan or given.dout is not dout or given.out is not out:
            return backward(packed, given)
        plan = _backward_plans.put(key, backward_plan(scan, given, is_aligned, index))
    else:
        known.used = _backward_plans.clock()
        plan = known.value
    if x is None or x.shape != plan.x_shape or not x.is_contiguous():
        x = forward(scan._replace(D=None, z=None)).x
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    ddelta = torch.empty_like(delta, memory_format=plan.ddelta_format)
    written, out_z = dz, None
    if z is not None:
        if not plan.writes_given_dz:
            written = torch.empty_like(z, memory_format=torch.contiguous_format)
        if recompute_out_z:
            out_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    dB = torch.empty_like(B, memory_format=torch.contiguous_format)
    dC = torch.empty_like(C, memory_format=torch.contiguous_format)
    # Of one row the weights' gradients are the sum already.
    total = _floats(u, sum(plan.pieces))
    scratch = _floats(u, plan.weights + plan.sums + plan.carried + plan.carried_times)
    weights = scratch.data_ptr()
    sums = weights + 4 * plan.weights
    carry = sums + 4 * plan.sums
    if plan.rows == 1:
        weights = total.data_ptr()
    arguments = (
        *addresses,
        x.data_ptr(),
        out_address,
        du.data_ptr(),
        ddelta.data_ptr(),
        0 if written is None else written.data_ptr(),
        0 if out_z is None else out_z.data_ptr(),
        weights,
        sums,
        carry,
        carry + 4 * plan.carried,
        *plan.constants,
    )
    stream = compiler.current_stream(index)
    for launch in plan.launches:
        launch(stream, *arguments)
    if plan.sum_launch is not None:
        plan.sum_launch(
            stream,
            sums,
            dB.data_ptr(),
            dC.data_ptr(),
            weights,
            total.data_ptr(),
            *plan.sum_constants,
        )
    dA, constant_dB, constant_dC, dD, ddelta_bias = total.split_with_sizes(plan.pieces)
    if dz is not None and not plan.writes_given_dz:
        assert written is not None
        written = dz.copy_(written)
    return Gradients(
        du,
        ddelta,
        _weight(dA, A),
        dB if B.dim() == 4 else _weight(constant_dB, B),
        dC if C.dim() == 4 else _weight(constant_dC, C),
        None if D is None else dD,
        None if delta_bias is None else ddelta_bias,
        written,
        out_z,
    )


def _likeness(scan: Scan) -> tuple[Any, ...]:
    """Whatever a plan depends on, without addresses and device: dtypes, shapes, strides."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    return (
        u.dtype,
        A.dtype,
        delta_softplus,
        u.shape,
        B.shape,
        C.shape,
        A.shape,
        u.stride(),
        delta.stride(),
        A.stride(),
        B.stride(),
        C.stride(),
        None if D is None else D.stride(),
        None if z is None else z.stride(),
        None if delta_bias is None else delta_bias.stride(),
    )


def _floats(like: Tensor, count: int) -> Tensor:
    return like.new_empty((count,), dtype=torch.float32)


def _packed(scan: Scan) -> Scan:
    """The scan with rows and weights as the kernels read them; itself where they are."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    packed = Scan(
        rows(u),
        rows(delta),
        A.contiguous(),
        _matrix(B),
        _matrix(C),
        None if D is None else D.contiguous(),
        None if z is None else rows(z),
        None if delta_bias is None else delta_bias.contiguous(),
        delta_softplus,
    )
    return scan if all(one is other for one, other in zip(scan, packed)) else packed


def _matrix(tensor: Tensor) -> Tensor:
    """B or C with packed rows where it varies along time, packed throughout where it does not."""
    return rows(tensor) if tensor.dim() == 4 else tensor.contiguous()


def _weight(gradient: Tensor, like: Tensor) -> Tensor:
    """A (dim, dstate) gradient out of a row of floats."""
    if not like.is_complex():
        return gradient.view(like.shape)
    return torch.view_as_complex(gradient.view(*like.shape, 2))
