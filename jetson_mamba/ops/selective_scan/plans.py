"""How a selective scan is divided over the GPU: variants of the kernels, layouts, plans.

A *plan* holds whatever calls share whose tensors differ in nothing but their addresses; ``cuda``
makes one at the first such call and launches by it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import NUMBERS, VECTOR_BYTES, processors

from .contract import Returning, Scan

# Segments of time below these would spend more on their carries than they gain.
SHORTEST_FORWARD = 256
SHORTEST_BACKWARD = 128
MOST_SEGMENTS = 16
SUM_STEPS = 32
WARPS = 4


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


def forward_plan(scan: Scan, kept: bool, is_aligned: bool, index: int) -> ForwardPlan:
    """The plan of forward passes like this one, on the GPU of that index.

    ``kept`` says whether they write what a backward pass reads, ``is_aligned`` whether every
    tensor begins at a whole vector.
    """
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


def backward_plan(scan: Scan, returning: Returning, is_aligned: bool, index: int) -> BackwardPlan:
    """The plan of backward passes like this one; see :func:`forward_plan`."""
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


@lru_cache(maxsize=1024)
def _segments(seqlen: int, blocks: int, index: int, step: int, shortest: int) -> tuple[int, int]:
    """Length and number of the segments of time: one where the channels fill the GPU."""
    wanted = 1
    if 2 * blocks < 3 * processors(index):
        wanted = min(MOST_SEGMENTS, 3 * processors(index) // blocks, seqlen // shortest)
    length = -(-max(1, seqlen // max(1, wanted)) // step) * step
    return length, -(-seqlen // length)


def _slots(sets: int, channels: int, width: int, others: int, index: int) -> int:
    """Blocks that share a group's channels; each writes its own sums of dB and dC.

    The sums of all sets take ``8 width / channels`` bytes a step and channel; where that is more
    than four times a float32 input, blocks take several sets, as many as keep the GPU busy.
    """
    affordable = sets * 16 * channels // (8 * width)
    busy = -(-4 * processors(index) // others)
    return max(1, min(sets, max(affordable, busy)))


def _whole_vectors(floats: int) -> int:
    return -(-floats // 4) * 4


def _packed_format(tensor: Tensor) -> torch.memory_format:
    """That of a tensor like this one whose last dimension is packed."""
    alike = torch.empty_like(tensor, device="meta")
    return torch.preserve_format if alike.stride(2) == 1 else torch.contiguous_format


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


def _power_of_two_above(number: int) -> int:
    return 1 << max(0, number - 1).bit_length()
