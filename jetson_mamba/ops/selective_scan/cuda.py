"""The selective scan by the project's own CUDA kernels (``kernels/selective_scan_*.cu``).

Here is what surrounds them: which variant serves a call, how time and channels are divided over
the GPU, and the buffers. Every result is the same in every run: nothing is added atomically.

``x`` is finer than upstream's: a row is two times ``layout.interval`` steps, entry ``2 n`` the
state ``n`` in its middle and ``2 n + 1`` at its end. ``x[:, :, -1, 1::2]`` is the last state, as
upstream's. An ``x`` of another shape is made again.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels import compiler
from ..backends import Unavailable
from .contract import Case, Gradients, Implementation, Returning, Scan, Scanned

MAXIMUM_DSTATE = 256
NUMBERS = {torch.float32: "float", torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
# Segments of time below these would spend more on their carries than they gain.
SHORTEST_FORWARD = 256
SHORTEST_BACKWARD = 128
MOST_SEGMENTS = 16
SUM_STEPS = 32
FORWARD_WARPS = BACKWARD_WARPS = 4
VECTOR_BYTES = 16


class Variant(NamedTuple):
    """What a kernel is specialised on; ``defines`` spells it for the compiler."""

    dtype: torch.dtype
    dstate: int
    is_complex: bool
    constant_b: bool
    constant_c: bool
    has_d: bool
    has_z: bool
    has_bias: bool
    softplus: bool
    aligned: bool
    segmented: bool
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
    backward_warps: int  # of a block


@lru_cache(maxsize=None)
def layout_of(dstate: int, is_complex: bool) -> Layout:
    """The layout for a number of states."""
    states = max(2 if is_complex else 4, _power_of_two_above((dstate + 31) // 32))
    lanes = _power_of_two_above((dstate + states - 1) // states)
    padded = lanes * states
    # Up to 16 states, the steps that the backward pass stages at once, which spares it a sweep's
    # loads; x then takes 2 bytes a step and channel. Rarer where a state is large.
    interval = min(32, 8 * lanes) if dstate <= 16 else 64 if dstate <= 64 else 128
    # The sums of more than 8 lanes a channel fit 48 KB of shared memory with two warps.
    warps = BACKWARD_WARPS if lanes <= 8 else 2
    return Layout(32 // lanes, padded, padded * (2 if is_complex else 1), interval, warps)


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
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    u, delta, B, C = _rows(u), _rows(delta), _matrix(B), _matrix(C)
    z = None if z is None else _rows(z)
    A, D, delta_bias = A.contiguous(), _packed(D), _packed(delta_bias)
    batch, dim, seqlen = u.shape
    dstate = A.shape[1]
    is_complex = A.is_complex()
    layout = layout_of(dstate, is_complex)
    step = 2 * layout.interval
    out = x = out_z = None
    if kept or z is None:
        out = torch.empty_like(delta)
        if out.stride(2) != 1:
            out = torch.empty_like(delta, memory_format=torch.contiguous_format)
    if z is not None:
        out_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    if kept:
        x = A.new_empty((batch, dim, (seqlen + step - 1) // step, 2 * dstate))
    groups = scan.groups
    sets = groups * -(-(dim // groups) // (FORWARD_WARPS * layout.channels))
    index = u.get_device()
    segment, segments = _segments(seqlen, sets * batch, index, step, SHORTEST_FORWARD)
    kernel, carry_kernel = _forward_kernels(
        Variant(
            u.dtype,
            dstate,
            is_complex,
            B.dim() == 2,
            C.dim() == 2,
            D is not None,
            z is not None,
            delta_bias is not None,
            delta_softplus,
            _aligned(u, delta, z, out, out_z, _variable(B), _variable(C)),
            segments > 1,
            kept,
        ),
        index,
    )
    carried = batch * dim * segments if segments > 1 else 0
    _scratch_tensor, (carry, carry_time) = _scratch(A, carried * layout.width, carried)
    arguments = (
        u.data_ptr(),
        delta.data_ptr(),
        A.data_ptr(),
        B.data_ptr(),
        C.data_ptr(),
        _pointer(D),
        _pointer(z),
        _pointer(delta_bias),
        _pointer(out),
        _pointer(out_z),
        _pointer(x),
        carry,
        carry_time,
        dim,
        dim // groups,
        seqlen,
        segment,
        segments,
        *_strides(u, delta, z, out, out_z),
        *_matrix_strides(B),
        *_matrix_strides(C),
    )
    block = (32 * FORWARD_WARPS, 1, 1)
    if carry_kernel is not None:
        carry_kernel.launch((sets, batch, segments - 1), block, 0, *arguments)
    kernel.launch((sets, batch, segments), block, 0, *arguments)
    return out, x, out_z


def backward(scan: Scan, returning: Returning) -> Gradients:
    """The gradients of a scan's arguments, and ``out_z``; see ``contract.py``."""
    u, delta, A, B, C, D, z, delta_bias, delta_softplus = scan
    dout, x, out, given_dz, recompute_out_z = returning
    u, delta, dout, B, C = _rows(u), _rows(delta), _rows(dout), _matrix(B), _matrix(C)
    A, D, delta_bias = A.contiguous(), _packed(D), _packed(delta_bias)
    batch, dim, seqlen = u.shape
    dstate = A.shape[1]
    is_complex = A.is_complex()
    layout = layout_of(dstate, is_complex)
    step = 2 * layout.interval
    chunks = (seqlen + step - 1) // step
    if x is None or x.shape != (batch, dim, chunks, 2 * dstate) or not x.is_contiguous():
        x = forward(scan._replace(D=None, z=None)).x
    du = torch.empty_like(u, memory_format=torch.contiguous_format)
    ddelta = torch.empty_like(delta)
    if ddelta.stride(2) != 1:
        ddelta = torch.empty_like(delta, memory_format=torch.contiguous_format)
    dz, out_z = given_dz, None
    if z is None:
        out = dz = given_dz = None
    else:
        z = _rows(z)
        if out is None:
            out = output(scan._replace(z=None))
        out = _rows(out)
        if dz is None or (dz.stride(2) != 1 and seqlen > 1):
            dz = torch.empty_like(z, memory_format=torch.contiguous_format)
        if recompute_out_z:
            out_z = torch.empty_like(z, memory_format=torch.contiguous_format)
    groups = scan.groups
    channels = layout.backward_warps * layout.channels
    sets = -(-(dim // groups) // channels)
    index = u.get_device()
    segment, segments = _segments(seqlen, groups * sets * batch, index, step, SHORTEST_BACKWARD)
    constant_b, constant_c = B.dim() == 2, C.dim() == 2
    matrices = 2 - constant_b - constant_c
    slots = _slots(sets, channels, layout.width, batch * groups * segments, index)
    variant = Variant(
        u.dtype,
        dstate,
        is_complex,
        constant_b,
        constant_c,
        D is not None,
        z is not None,
        delta_bias is not None,
        delta_softplus,
        _aligned(u, delta, z, dout, out, ddelta, dz, _variable(B), _variable(C)),
        segments > 1,
        recompute=out_z is not None,
    )
    kernel, carry_kernel, sum_kernel, weight_kernel = _backward_kernels(variant, index)
    floats = dim * dstate * (2 if is_complex else 1)
    width = floats * (1 + constant_b + constant_c) + 2 * dim
    rows = batch * segments
    weights = A.new_empty((rows, width), dtype=torch.float32)
    carried = batch * dim * segments if segments > 1 else 0
    _scratch_tensor, (sums, carry, carry_time) = _scratch(
        A,
        batch * groups * slots * seqlen * matrices * layout.width,
        carried * layout.width,
        carried,
    )
    arguments = (
        u.data_ptr(),
        delta.data_ptr(),
        A.data_ptr(),
        B.data_ptr(),
        C.data_ptr(),
        _pointer(D),
        _pointer(z),
        _pointer(delta_bias),
        dout.data_ptr(),
        x.data_ptr(),
        _pointer(out),
        du.data_ptr(),
        ddelta.data_ptr(),
        _pointer(dz),
        _pointer(out_z),
        weights.data_ptr(),
        sums,
        carry,
        carry_time,
        dim,
        dim // groups,
        slots,
        seqlen,
        segment,
        segments,
        *_strides(u, delta, z, dout, out, du, ddelta, dz, out_z),
        *_matrix_strides(B),
        *_matrix_strides(C),
    )
    grid, block = (groups * slots, batch, segments), (32 * layout.backward_warps, 1, 1)
    if carry_kernel is not None:
        carry_kernel.launch(grid, block, 0, *arguments)
    kernel.launch(grid, block, 0, *arguments)
    dB = torch.empty_like(B, memory_format=torch.contiguous_format)
    dC = torch.empty_like(C, memory_format=torch.contiguous_format)
    if matrices:
        columns = min(32, matrices * layout.width)
        sum_kernel.launch(
            (-(-seqlen // SUM_STEPS), matrices * layout.width // columns, batch * groups),
            (SUM_STEPS * max(1, columns // 4), 1, 1),
            0,
            sums,
            dB.data_ptr(),
            dC.data_ptr(),
            slots,
            seqlen,
        )
    total = weights
    if rows > 1:
        total = weights.new_empty((width,))
        weight_kernel.launch(
            (-(-width // 256), 1, 1),
            (256, 1, 1),
            0,
            weights.data_ptr(),
            total.data_ptr(),
            rows,
            width,
        )
    total = total.view(width)
    dA = _weight(total, 0, A)
    if constant_b:
        dB = _weight(total, floats, A)
    if constant_c:
        dC = _weight(total, floats * (1 + constant_b), A)
    dD = None if D is None else total[width - 2 * dim : width - dim]
    ddelta_bias = None if delta_bias is None else total[width - dim :]
    if given_dz is not None and dz is not given_dz:
        assert dz is not None
        given_dz.copy_(dz)
        dz = given_dz
    return Gradients(du, ddelta, dA, dB, dC, dD, ddelta_bias, dz, out_z)


@lru_cache(maxsize=None)
def _forward_kernels(
    variant: Variant, index: int
) -> tuple[compiler.Kernel, compiler.Kernel | None]:
    source, defines = "selective_scan_forward.cu", variant.defines(FORWARD_WARPS)
    carry = None
    if variant.segmented:
        carry = compiler.load(source, "selective_scan_forward_carry", defines, index)
    return compiler.load(source, "selective_scan_forward", defines, index), carry


@lru_cache(maxsize=None)
def _backward_kernels(
    variant: Variant, index: int
) -> tuple[compiler.Kernel, compiler.Kernel | None, compiler.Kernel, compiler.Kernel]:
    source = "selective_scan_backward.cu"
    warps = layout_of(variant.dstate, variant.is_complex).backward_warps
    defines = variant.defines(warps)
    carry = None
    if variant.segmented:
        carry = compiler.load(source, "selective_scan_backward_carry", defines, index)
    # The sums depend on less: one variant of them serves many of the scan.
    plain = variant._replace(
        has_d=False,
        has_z=False,
        has_bias=False,
        softplus=False,
        aligned=False,
        segmented=False,
        recompute=False,
    ).defines(warps)
    return (
        compiler.load(source, "selective_scan_backward", defines, index),
        carry,
        compiler.load("selective_scan_sums.cu", "selective_scan_sums", plain, index),
        compiler.load("selective_scan_sums.cu", "selective_scan_weights", plain, index),
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


def _scratch(like: Tensor, *sizes: int) -> tuple[Tensor, list[int]]:
    """One allocation for buffers of these many floats, and the address of each, 16-byte aligned."""
    places, total = [], 0
    for size in sizes:
        places.append(total)
        total += -(-size // 4) * 4
    scratch = like.new_empty((total,), dtype=torch.float32)
    begin = scratch.data_ptr()
    return scratch, [begin + 4 * place for place in places]


def _rows(tensor: Tensor) -> Tensor:
    """``tensor`` with its last dimension packed: a copy only where it is not."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()


def _matrix(tensor: Tensor) -> Tensor:
    """B or C with packed rows where it varies along time, packed throughout where it does not."""
    return _rows(tensor) if tensor.dim() == 4 else tensor.contiguous()


def _packed(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _variable(matrix: Tensor) -> Tensor | None:
    return matrix if matrix.dim() == 4 else None


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(*tensors: Tensor | None) -> list[int]:
    result: list[int] = []
    for tensor in tensors:
        result += (0, 0) if tensor is None else tensor.stride()[:2]
    return result


def _matrix_strides(matrix: Tensor) -> tuple[int, ...]:
    return matrix.stride()[:3] if matrix.dim() == 4 else (0, 0, 0)


def _aligned(*tensors: Tensor | None) -> bool:
    """Whether every row of these begins and ends at a multiple of 16 bytes."""
    for tensor in tensors:
        if tensor is None:
            continue
        size = tensor.element_size()
        combined = tensor.data_ptr() | tensor.shape[-1] * size
        for stride in tensor.stride()[:-1]:
            combined |= stride * size
        if combined % VECTOR_BYTES:
            return False
    return True


def _weight(total: Tensor, first: int, like: Tensor) -> Tensor:
    """A (dim, dstate) gradient out of the row of all weights' gradients."""
    if not like.is_complex():
        return total[first : first + like.numel()].view(like.shape)
    pairs = total[first : first + 2 * like.numel()].view(*like.shape, 2)
    return torch.view_as_complex(pairs)


def _power_of_two_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
