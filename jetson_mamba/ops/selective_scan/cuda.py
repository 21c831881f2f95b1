"""The selective scan by the project's own CUDA kernels (``kernels/selective_scan_*.cu``).

Here is what surrounds them: which variant serves a call, how time and channels are divided over
the GPU, and the buffers. All of that is decided once, in a *plan*, for calls whose tensors differ
in nothing but their addresses; a repeated call allocates and launches. Every result is the same in
every run: nothing is added atomically.

``x`` is finer than upstream's: a row is two times ``layout.interval`` steps, entry ``2 n`` the
state ``n`` in its middle and ``2 n + 1`` at its end. ``x[:, :, -1, 1::2]`` is the last state, as
upstream's. An ``x`` of another shape is made again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from jetson_mamba.errors import Unavailable

from ...kernels import compiler
from .contract import Case, Gradients, Implementation, Returning, Scan, Scanned

Plan = TypeVar("Plan")

MAXIMUM_DSTATE = 256
NUMBERS = {torch.float32: "float", torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
# Segments of time below these would spend more on their carries than they gain.
SHORTEST_FORWARD = 256
SHORTEST_BACKWARD = 128
MOST_SEGMENTS = 16
SUM_STEPS = 32
WARPS = 4
VECTOR_BYTES = 16
MOST_PLANS = 256


class Variant(NamedTuple):
    """What a kernel is specialised on; ``defines`` spells it for the compiler."""

    dtype: torch.dtype
    dstate: int
    is_complex: bool
    constant_b: bool
    constant_c: bool
    has_d: bool = False
    has_z: bool = False
    has_bias: bool = False
    softplus: bool = False
    aligned: bool = False
    segmented: bool = False
    kept: bool = True
    recompute: bool = False

    def defines(self, warps: int) -> tuple[tuple[str, str], ...]:
        """Preprocessor definitions, as ``kernels/selective_scan.cuh`` lists them."""
        flags = {
            "COMPLEX": self.is_complex,
            "CONSTANT_B": self.constant_b,
            "CONSTANT_C": self.constant_c,
            "HAS_D": self.has_d,
            "HAS_Z": self.has_z,
            "HAS_BIAS": self.has_bias,
            "SOFTPLUS": self.softplus,
            "ALIGNED": self.aligned,
            "SEGMENTED": self.segmented,
            "KEPT": self.kept,
            "RECOMPUTE": self.recompute,
        }
        return (
            ("NUMBER", NUMBERS[self.dtype]),
            ("DSTATE", str(self.dstate)),
            ("INTERVAL", str(layout_of(self.dstate, self.is_complex).interval)),
            ("WARPS", str(warps)),
            *((name, str(int(flag))) for name, flag in flags.items()),
        )


class Layout(NamedTuple):
    """How the kernels divide channels and states; computed as in ``selective_scan.cuh``."""

    channels: int  # of a warp
    padded: int  # states of a channel, rounded up
    width: int  # floats of a channel's states
    interval: int  # steps between the states that x keeps
    forward_warps: int  # of a block
    backward_warps: int


@lru_cache(maxsize=None)
def layout_of(dstate: int, is_complex: bool) -> Layout:
    """The layout for a number of states."""
    states = max(2 if is_complex else 4, _power_of_two_above((dstate + 31) // 32))
    lanes = _power_of_two_above((dstate + states - 1) // states)
    padded = lanes * states
    # Up to 16 states, the steps that the backward pass stages at once, which spares it a sweep's
    # loads; x then takes 2 bytes a step and channel. Rarer where a state is large.
    interval = min(32, 8 * lanes) if dstate <= 16 else 64 if dstate <= 64 else 128
    width = padded * (2 if is_complex else 1)
    # With fewer warps, what the widest need fits 48 KB of shared memory.
    forward_warps = WARPS if width <= 256 else 2
    backward_warps = WARPS if lanes <= 8 else 2
    return Layout(32 // lanes, padded, width, interval, forward_warps, backward_warps)


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


class ForwardPlan(NamedTuple):
    """What all forward passes share whose tensors differ in nothing but their addresses."""

    out_format: torch.memory_format
    x_shape: tuple[int, ...]
    # The floats of a segment's end states and of its delta's sums, padded to 16 bytes.
    carried: int
    carried_times: int
    # After the addresses, and the kernels in their order.
    constants: tuple[int, ...]
    launches: tuple[compiler.Launch, ...]


class BackwardPlan(NamedTuple):
    """The same of backward passes."""

    x_shape: tuple[int, ...]
    ddelta_format: torch.memory_format
    writes_given_dz: bool
    # Rows of the weights' gradients, and the floats of A's, constant B's and C's, D's and
    # delta_bias's in each.
    rows: int
    pieces: tuple[int, ...]
    # The floats of what is of use in the pass alone, padded to 16 bytes.
    weights: int
    sums: int
    carried: int
    carried_times: int
    constants: tuple[int, ...]
    launches: tuple[compiler.Launch, ...]
    sum_constants: tuple[int, ...]
    sum_launch: compiler.Launch | None


_forward_plans: dict[tuple[Any, ...], ForwardPlan] = {}
_backward_plans: dict[tuple[Any, ...], BackwardPlan] = {}


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
    plan = _forward_plans.get(key)
    if plan is None:
        packed = _packed(scan)
        if packed is not scan:
            return _scanned(packed, kept)
        plan = _remember(_forward_plans, key, _forward_plan(scan, kept, is_aligned, index))
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
    plan = _backward_plans.get(key)
    if plan is None:
        packed = _packed(scan)
        rows = returning._replace(dout=_rows(dout), out=None if out is None else _rows(out))
        if packed is not scan or rows.dout is not dout or rows.out is not out:
            return backward(packed, rows)
        made = _backward_plan(scan, rows, is_aligned, index)
        plan = _remember(_backward_plans, key, made)
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
    """All of a scan that decides how it is done, but the addresses and the device."""
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


def _remember(plans: dict[tuple[Any, ...], Plan], key: tuple[Any, ...], plan: Plan) -> Plan:
    # A caller with ever new lengths starts over.
    if len(plans) >= MOST_PLANS:
        plans.clear()
    plans[key] = plan
    return plan


def _forward_plan(scan: Scan, kept: bool, is_aligned: bool, index: int) -> ForwardPlan:
    u, delta, A, B, C, _, z, _, _ = scan
    batch, dim, seqlen = u.shape
    layout = layout_of(A.shape[1], A.is_complex())
    step = 2 * layout.interval
    out_format = _packed_format(delta)
    out = torch.empty_like(delta, device="meta", memory_format=out_format)
    out_z = None if z is None else torch.empty(z.shape, dtype=z.dtype, device="meta")
    groups = scan.groups
    sets = groups * -(-(dim // groups) // (layout.forward_warps * layout.channels))
    segment, segments = _segments(seqlen, sets * batch, index, step, SHORTEST_FORWARD)
    aligned = is_aligned and _aligned(u, delta, z, out, _variable(B), _variable(C))
    variant = _variant(scan, aligned, segments > 1)._replace(kept=kept)
    source, defines = "selective_scan_forward.cu", variant.defines(layout.forward_warps)
    block = (32 * layout.forward_warps, 1, 1)
    launches = [
        compiler.Launch(
            compiler.load(source, "selective_scan_forward", defines, index),
            (sets, batch, segments),
            block,
            overlapping=segments > 1,
        )
    ]
    if segments > 1:
        carry = compiler.load(source, "selective_scan_forward_carry", defines, index)
        launches.insert(0, compiler.Launch(carry, (sets, batch, segments - 1), block))
    carried = batch * dim * segments if segments > 1 else 0
    return ForwardPlan(
        out_format,
        (batch, dim, -(-seqlen // step), 2 * A.shape[1]),
        _whole_vectors(carried * layout.width),
        carried,
        (
            dim,
            dim // groups,
            seqlen,
            segment,
            segments,
            *_strides(u, delta, z, out, out_z),
            *_matrix_strides(B),
            *_matrix_strides(C),
        ),
        tuple(launches),
    )


def _backward_plan(scan: Scan, returning: Returning, is_aligned: bool, index: int) -> BackwardPlan:
    u, delta, A, B, C, _, z, _, _ = scan
    dout, _, out, given_dz, recompute_out_z = returning
    batch, dim, seqlen = u.shape
    dstate = A.shape[1]
    layout = layout_of(dstate, A.is_complex())
    step = 2 * layout.interval
    ddelta_format = _packed_format(delta)
    ddelta = torch.empty_like(delta, device="meta", memory_format=ddelta_format)
    packed = torch.empty(u.shape, dtype=u.dtype, device="meta")
    writes_given_dz = given_dz is not None and (given_dz.stride(2) == 1 or seqlen == 1)
    dz = None if z is None else given_dz if writes_given_dz else packed
    out_z = packed if recompute_out_z and z is not None else None
    groups = scan.groups
    channels = layout.backward_warps * layout.channels
    sets = -(-(dim // groups) // channels)
    segment, segments = _segments(seqlen, groups * sets * batch, index, step, SHORTEST_BACKWARD)
    constant_b, constant_c = B.dim() == 2, C.dim() == 2
    matrices = 2 - constant_b - constant_c
    slots = _slots(sets, channels, layout.width, batch * groups * segments, index)
    aligned = is_aligned and _aligned(
        u, delta, z, dout, out, ddelta, dz, _variable(B), _variable(C)
    )
    variant = _variant(scan, aligned, segments > 1)._replace(recompute=out_z is not None)
    source, defines = "selective_scan_backward.cu", variant.defines(layout.backward_warps)
    grid, block = (groups * slots, batch, segments), (32 * layout.backward_warps, 1, 1)
    launches = [
        compiler.Launch(
            compiler.load(source, "selective_scan_backward", defines, index),
            grid,
            block,
            overlapping=segments > 1,
        )
    ]
    if segments > 1:
        carry = compiler.load(source, "selective_scan_backward_carry", defines, index)
        launches.insert(0, compiler.Launch(carry, grid, block))

    floats = dim * dstate * (2 if A.is_complex() else 1)
    pieces = (floats, floats * constant_b, floats * constant_c, dim, dim)
    rows, width = batch * segments, sum(pieces)
    columns = min(32, matrices * layout.width)
    sum_blocks = 0
    if matrices:
        sum_blocks = -(-seqlen // SUM_STEPS) * (matrices * layout.width // columns) * batch * groups
    threads = SUM_STEPS * max(1, columns // 4)
    blocks = sum_blocks + (-(-width // threads) if rows > 1 else 0)
    sum_launch = None
    if blocks:
        # The sums depend on less: one variant of them serves many of the scan.
        plain = Variant(variant.dtype, dstate, variant.is_complex, constant_b, constant_c)
        name = "selective_scan_sums"
        kernel = compiler.load(f"{name}.cu", name, plain.defines(layout.backward_warps), index)
        sum_launch = compiler.Launch(kernel, (blocks, 1, 1), (threads, 1, 1), overlapping=True)
    carried = batch * dim * segments if segments > 1 else 0
    return BackwardPlan(
        (batch, dim, -(-seqlen // step), 2 * dstate),
        ddelta_format,
        writes_given_dz,
        rows,
        pieces,
        _whole_vectors(rows * width if rows > 1 else 0),
        batch * groups * slots * seqlen * matrices * layout.width,
        _whole_vectors(carried * layout.width),
        carried,
        (
            dim,
            dim // groups,
            slots,
            seqlen,
            segment,
            segments,
            *_strides(u, delta, z, dout, out, packed, ddelta, dz, out_z),
            *_matrix_strides(B),
            *_matrix_strides(C),
        ),
        tuple(launches),
        (sum_blocks, slots, seqlen, rows, width),
        sum_launch,
    )


def _variant(scan: Scan, aligned: bool, segmented: bool) -> Variant:
    return Variant(
        scan.u.dtype,
        scan.A.shape[1],
        scan.A.is_complex(),
        scan.B.dim() == 2,
        scan.C.dim() == 2,
        scan.D is not None,
        scan.z is not None,
        scan.delta_bias is not None,
        scan.delta_softplus,
        aligned,
        segmented,
    )


@lru_cache(maxsize=None)
def _processors(index: int) -> int:
    return int(torch.cuda.get_device_properties(index).multi_processor_count)


@lru_cache(maxsize=1024)
def _segments(seqlen: int, blocks: int, index: int, step: int, shortest: int) -> tuple[int, int]:
    """Length and number of the segments of time: one where the channels fill the GPU."""
    processors = _processors(index)
    wanted = 1
    if 2 * blocks < 3 * processors:
        wanted = min(MOST_SEGMENTS, 3 * processors // blocks, seqlen // shortest)
    length = -(-max(1, seqlen // max(1, wanted)) // step) * step
    return length, -(-seqlen // length)


def _slots(sets: int, channels: int, width: int, others: int, index: int) -> int:
    """Blocks that share a group's channels; each writes its own sums of dB and dC.

    The sums of all sets take ``8 width / channels`` bytes a step and channel; where that is more
    than four times a float32 input, blocks take several sets, as many as keep the GPU busy.
    """
    affordable = sets * 16 * channels // (8 * width)
    busy = -(-4 * _processors(index) // others)
    return max(1, min(sets, max(affordable, busy)))


def _floats(like: Tensor, count: int) -> Tensor:
    return like.new_empty((count,), dtype=torch.float32)


def _whole_vectors(floats: int) -> int:
    return -(-floats // 4) * 4


def _packed_format(tensor: Tensor) -> torch.memory_format:
    """That of a tensor like this one whose last dimension is packed."""
    alike = torch.empty_like(tensor, device="meta")
    return torch.preserve_format if alike.stride(2) == 1 else torch.contiguous_format


def _packed(scan: Scan) -> Scan:
    """The scan with rows and weights as the kernels read them; itself where they are."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    packed = Scan(
        _rows(u),
        _rows(delta),
        A.contiguous(),
        _matrix(B),
        _matrix(C),
        None if D is None else D.contiguous(),
        None if z is None else _rows(z),
        None if delta_bias is None else delta_bias.contiguous(),
        delta_softplus,
    )
    return scan if all(one is other for one, other in zip(scan, packed)) else packed


def _rows(tensor: Tensor) -> Tensor:
    """``tensor`` with its last dimension packed: a copy only where it is not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _matrix(tensor: Tensor) -> Tensor:
    """B or C with packed rows where it varies along time, packed throughout where it does not."""
    return _rows(tensor) if tensor.dim() == 4 else tensor.contiguous()


def _variable(matrix: Tensor) -> Tensor | None:
    return matrix if matrix.dim() == 4 else None


def _strides(*tensors: Tensor | None) -> list[int]:
    result: list[int] = []
    for tensor in tensors:
        result += (0, 0) if tensor is None else tensor.stride()[:2]
    return result


def _matrix_strides(matrix: Tensor) -> tuple[int, ...]:
    return matrix.stride()[:3] if matrix.dim() == 4 else (0, 0, 0)


def _aligned(*tensors: Tensor | None) -> bool:
    """Whether every row of these is whole vectors, if the first begins at one."""
    for tensor in tensors:
        if tensor is None:
            continue
        size = tensor.element_size()
        combined = tensor.shape[-1] * size
        for stride in tensor.stride()[:-1]:
            combined |= stride * size
        if combined % VECTOR_BYTES:
            return False
    return True


def _weight(gradient: Tensor, like: Tensor) -> Tensor:
    """A (dim, dstate) gradient out of a row of floats."""
    if not like.is_complex():
        return gradient.view(like.shape)
    return torch.view_as_complex(gradient.view(*like.shape, 2))


def _power_of_two_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
