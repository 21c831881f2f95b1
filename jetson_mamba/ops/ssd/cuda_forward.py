"""The scan of Mamba-2 by the project's own CUDA kernels: what surrounds its forward pass.

Which variant of the kernels serves a call, how channels and time are divided over the GPU, and what
their arguments are but the addresses is decided once, in a *plan*, for calls whose tensors differ
in nothing else; a repeated call allocates and launches.
"""

from __future__ import annotations

import heapq
import math
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import (
    MOST_PLANS,
    NUMBERS,
    VECTOR_BYTES,
    address,
    processors,
    strides_of,
)

from .contract import Scan
from .cuda_arguments import aligned, likeness, limits_of, options_of, prepared

THREADS = 160
PASS_THREADS = 256
# Threads of a warpgroup; heads that a block of these takes at most, and what it takes longer then.
GROUP = 128
HEADS, LONGER = 2, 1.65
# Kernels that walk along states, a warpgroup to each head.
OF_WARPGROUPS = ("ssd_states_warpgroups", "ssd_backward_states_warpgroups")
# Warpgroups of a block that makes outputs: one fetches, one has the state.
FORWARD_ROLES = 4
# Of another kernel: three warpgroups multiply, and the sums of four heads are kept.
ROLES, HEADS_KEPT = 3, 4
# States up to which the kernels have room for more.
WIDE = 128


class Variant(NamedTuple):
    """What a kernel is specialised on; ``defines`` spells it for the compiler."""

    dtype: torch.dtype
    headdim: int
    dstate: int
    aligned: bool
    # Bytes of shared memory that a block may take on the device.
    room: int = 163 * 1024
    # Dimensions of D, 0 where there is none.
    d: int = 0
    has_z: bool = False
    has_sequences: bool = False

    @property
    def given(self) -> int:
        """Of how many 16-bit numbers one of memory is made in a product."""
        if self.dtype != torch.float32:
            return 1
        return 3 if self.states <= WIDE else 2

    def made(self, kernel: str) -> int:
        """Of how many one is made that a kernel computes.

        Rounded to 8 bits, the factors of an output would together add to its error as much as its
        own rounding does. Two pieces cost the forward pass a quarter (``docs/notes-kernels.md``).
        Of the backward pass, the states alone: the gradient of the first is one.
        """
        of_states = not kernel.startswith("ssd_backward") or "states" in kernel
        return 2 if self.dtype == torch.bfloat16 and of_states else self.given

    @property
    def states(self) -> int:
        """dstate as the kernels round it up."""
        return -(-self.dstate // 16) * 16

    @property
    def chunk(self) -> int:
        """Steps that are worked on at once."""
        return 32 if self.dtype == torch.float32 or self.states > WIDE else 64

    def slice(self, kernel: str) -> int:
        """Channels of a head that a block of a kernel works on at once."""
        return 32 if kernel == "ssd_backward" and self.dtype == torch.float32 else 64

    @property
    def slices(self) -> int:
        """Parts of a head's channels, each the work of a block of the forward pass."""
        return -(-self.headdim // self.slice("ssd_forward"))

    @property
    def fits_warpgroups(self) -> bool:
        """Whether products of warpgroups are of these sizes."""
        is_whole = self.headdim % 64 == 0 and self.dstate in (64, 128)
        return self.aligned and self.dtype != torch.float32 and is_whole

    @property
    def kept_arrays(self) -> int:
        """Numbers of a step that the backward pass reads again."""
        return 3 + (self.dtype == torch.float32) + self.has_sequences

    def threads(self, kernel: str) -> int:
        """Threads of a block."""
        if kernel == "ssd_backward":
            return 3 * 2 * self.chunk
        if kernel in OF_WARPGROUPS:
            return GROUP * (HEADS + 1)
        if kernel == "ssd_forward_warpgroups":
            return GROUP * FORWARD_ROLES
        if kernel == "ssd_backward_warpgroups":
            return GROUP * (ROLES + 1)
        return THREADS if kernel in ("ssd_forward", "ssd_states") else PASS_THREADS

    def stages(self, kernel: str) -> int:
        """Chunks in shared memory; copies ahead of the work are of 16-bit numbers only."""
        if self.dtype == torch.float32 or not self.aligned:
            return 1
        if kernel.endswith("_warpgroups"):
            most = 4 if kernel == "ssd_forward_warpgroups" else 3
            fitting = (n for n in range(most, 2, -1) if self._shared_bytes(kernel, n) <= self.room)
            return next(fitting, 2)
        return 2 if self._shared_bytes(kernel, 2) <= self.room else 1

    def shared_bytes(self, kernel: str) -> int:
        """Bytes of shared memory that a block of a kernel takes."""
        return self._shared_bytes(kernel, self.stages(kernel))

    def _shared_bytes(self, kernel: str, stages: int) -> int:
        """As ``kernels/ssd*`` lay it out."""

        def tile(rows: int, columns: int, pieces: int = self.given) -> int:
            return pieces * rows * (columns + 8) * 2

        chunk, states, part = self.chunk, self.states, self.slice(kernel)
        wide, narrow = tile(chunk, states), tile(chunk, part)
        if kernel == "ssd_forward":
            return (
                stages * (2 * wide + narrow)
                + tile(chunk, chunk, self.made(kernel))
                + 2 * 24 * chunk
            )
        if kernel == "ssd_forward_warpgroups":
            part = 2 * chunk * states
            tiles = stages * (2 * part + 2 * chunk * 64) + 2 * self.made(kernel) * part
            barriers = 8 * (2 * stages + 4)
            steps = stages * (24 + (4 if self.made(kernel) == 2 else 0)) * chunk
            return -(-(tiles + steps + barriers) // 1024) * 1024
        if kernel == "ssd_backward_warpgroups":
            tiles = 2 * chunk * (2 * states + stages * (2 * 64 + 2 * states)) + 2 * 8 * GROUP * 16
            sums = 4 * (4 * chunk + 2 + 4 * (self.headdim if self.d == 2 else 1))
            others = HEADS_KEPT * (36 * chunk + sums) + 4 * chunk + stages * 16
            return -(-(tiles + others) // 1024) * 1024
        if kernel in OF_WARPGROUPS:
            tiles = stages * 2 * chunk * (states + HEADS * 64)
            if kernel == "ssd_backward_states_warpgroups":
                tiles += HEADS * 2 * 2 * self.headdim * states
            return -(-(tiles + HEADS * stages * 36 * chunk) // 1024) * 1024
        if kernel == "ssd_states":
            return stages * (wide + narrow) + 2 * 36 * chunk
        if kernel == "ssd_backward":
            sums = 4 * (4 * chunk + chunk // 16 * (1 + part))
            fixed = 2 * wide + 3 * 36 * chunk + 2 * sums + 20 * chunk
            return -(-(fixed + stages * (2 * narrow + 2 * tile(part, states))) // 16) * 16
        return 4 * PASS_THREADS if kernel == "ssd_sums" else 0

    def blocks(self, kernel: str) -> int:
        """Blocks of a kernel that are to fit a multiprocessor by their registers."""
        if kernel.endswith("_warpgroups"):
            return 1
        return 2 if self.states <= WIDE else 1

    def defines(self, kernel: str) -> tuple[tuple[str, str], ...]:
        """Preprocessor definitions, as ``kernels/ssd.cuh`` lists them."""
        return (
            ("NUMBER", NUMBERS[self.dtype]),
            ("GIVEN", str(self.given)),
            ("MADE", str(self.made(kernel))),
            ("HEADDIM", str(self.headdim)),
            ("DSTATE", str(self.dstate)),
            ("CHUNK", str(self.chunk)),
            ("STAGES", str(self.stages(kernel))),
            ("SLICE", str(self.slice(kernel))),
            ("ALIGNED", str(int(self.aligned))),
            ("HAS_D", str(self.d)),
            ("HAS_Z", str(int(self.has_z))),
            ("HAS_SEQUENCES", str(int(self.has_sequences))),
            ("SHARED", str(self.shared_bytes(kernel))),
            ("BLOCKS", str(self.blocks(kernel))),
            *([("HEADS", str(HEADS))] if kernel in OF_WARPGROUPS else ()),
        )

    def launch(
        self,
        kernel: str,
        grid: tuple[int, int, int],
        index: int,
        more: tuple[tuple[str, str], ...] = (),
    ) -> compiler.Launch:
        """A kernel with its grid, compiled for a device where it is not yet."""
        loaded = compiler.load(f"{kernel}.cu", kernel, (*self.defines(kernel), *more), index)
        return compiler.Launch(
            loaded, grid, (self.threads(kernel), 1, 1), shared_bytes=self.shared_bytes(kernel)
        )

    def divided(
        self, kernel: str, batch: int, heads: int, groups: int, parts: int, index: int
    ) -> tuple[compiler.Launch, tuple[int, ...]]:
        """A kernel that walks along time, over parts of it, and its last arguments.

        By products of warpgroups where there are these: each group's heads are divided over blocks.
        """
        if not (has_warpgroups(index) and self.fits_warpgroups):
            return self.launch(kernel, (heads, batch * self.slices, parts), index), ()
        units_of_batch = groups * self.slices
        units, per_group = batch * units_of_batch, heads // groups
        full = full_blocks(per_group, units * parts, index)
        grid = (units * (per_group - (HEADS - 1) * full), parts, 1)
        return self.launch(f"{kernel}_warpgroups", grid, index), (full, units_of_batch, batch)


class ForwardPlan(NamedTuple):
    """What all forward passes share whose tensors differ in nothing but their addresses."""

    # Segments of time, and the floats of what each adds to the state, and of its decay.
    segments: int
    carried: int
    decays: int
    # Of the kernels that find out the states before the segments, and of the one that follows.
    states_launch: compiler.Launch | None
    states_constants: tuple[int, ...]
    pass_launch: compiler.Launch | None
    pass_constants: tuple[int, ...]
    launch: compiler.Launch
    constants: tuple[int, ...]


_plans: Memo[tuple[Any, ...], ForwardPlan] = Memo(MOST_PLANS)


def forward(given: Scan) -> tuple[Tensor, Tensor]:
    """Output and last state of a scan, of which ``cu_seqlens`` is not looked at."""
    index = given.x.get_device()
    if compiler.current_device() != index:
        with torch.cuda.device(index):
            return forward(given)
    scan = prepared(given)
    x, dt, A, B, C = scan.x, scan.dt, scan.A, scan.B, scan.C
    addresses = (
        x.data_ptr(),
        dt.data_ptr(),
        A.data_ptr(),
        B.data_ptr(),
        C.data_ptr(),
        address(scan.D),
        address(scan.z),
        address(scan.dt_bias),
        address(scan.seq_idx),
    )
    is_aligned = not (addresses[0] | addresses[3] | addresses[4] | addresses[6]) % VECTOR_BYTES
    key = (is_aligned, index, *likeness(scan))
    known = _plans.find(key)
    if known is None:
        compiler.begin(lambda: _plan(scan, is_aligned, index), index)
        plan = _plans.put(key, _plan(scan, is_aligned, index))
    else:
        known.used = _plans.clock()
        plan = known.value
    batch, _, nheads, headdim = x.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    state = torch.empty((batch, nheads, headdim, B.shape[3]), dtype=torch.float32, device=x.device)
    starts = address(scan.initial_states)
    stream = compiler.current_stream(index)
    if plan.states_launch is not None and plan.pass_launch is not None:
        scratch = torch.empty((plan.carried + plan.decays,), dtype=torch.float32, device=x.device)
        ends = scratch.data_ptr()
        decays = ends + 4 * plan.carried
        plan.states_launch(
            stream,
            *(addresses[0], 0, *addresses[1:5], *addresses[7:]),
            *(0, 0, ends, decays, 0, 0, 0),
            *plan.states_constants,
        )
        plan.pass_launch(stream, starts, 0, ends, decays, 0, 0, *plan.pass_constants)
        starts = ends
    plan.launch(stream, *addresses, starts, out.data_ptr(), state.data_ptr(), *plan.constants)
    return (out if out.dtype == given.x.dtype else out.to(given.x.dtype)), state


def _plan(scan: Scan, is_aligned: bool, index: int) -> ForwardPlan:
    x, dt, B, C, z, seq_idx = scan.x, scan.dt, scan.B, scan.C, scan.z, scan.seq_idx
    batch, seqlen, nheads, _ = x.shape
    variant = variant_of(scan, is_aligned, index)
    chunks = -(-seqlen // variant.chunk)
    blocks = nheads * batch * variant.slices
    segment, segments = segments_of(chunks, blocks, index)
    sizes: tuple[int, ...] = (seqlen, nheads, nheads // B.shape[2], segment, segments)
    states_launch = pass_launch = None
    if (
        has_warpgroups(index)
        and variant.fits_warpgroups
        and walks_along_time(chunks, blocks, index)
    ):
        segments, sizes = 1, sizes[:3]
        grid = (nheads, 1, batch * variant.slices)
        launch = variant.launch("ssd_forward_warpgroups", grid, index)
    else:
        grid = (nheads, batch * variant.slices, segments)
        launch = variant.launch("ssd_forward", grid, index)
        if segments > 1:
            states_launch = variant.launch("ssd_states", (*grid[:2], segments - 1), index)
            states = -(-variant.headdim * variant.dstate // PASS_THREADS)
            pass_launch = variant.launch("ssd_pass", (states, batch * nheads, 1), index)
    scalars = (options_of(scan), *limits_of(scan))
    sequence = strides_of(seq_idx, 2)
    return ForwardPlan(
        segments,
        batch * nheads * segments * variant.headdim * variant.dstate,
        blocks * segments,
        states_launch,
        (
            *scalars,
            *sizes,
            *(*x.stride()[:3], 0, 0, 0, *dt.stride(), *B.stride()[:3], *C.stride()[:3]),
            *sequence,
        ),
        pass_launch,
        (nheads, segments),
        launch,
        (
            *scalars,
            *sizes,
            *(*x.stride()[:3], *dt.stride(), *B.stride()[:3], *C.stride()[:3]),
            *strides_of(z)[:3],
            *sequence,
        ),
    )


def variant_of(scan: Scan, is_aligned: bool, index: int) -> Variant:
    """The variant that serves a scan whose first addresses are aligned, or not."""
    wide = (scan.x, scan.B, scan.C) if scan.z is None else (scan.x, scan.B, scan.C, scan.z)
    return Variant(
        scan.x.dtype,
        scan.x.shape[3],
        scan.B.shape[3],
        is_aligned and aligned(*wide),
        room(index),
        0 if scan.D is None else scan.D.dim(),
        scan.z is not None,
        scan.seq_idx is not None,
    )


@lru_cache(maxsize=None)
def room(index: int) -> int:
    """Bytes of shared memory that a block may take on a device."""
    if index < 0:
        return int(Variant._field_defaults["room"])
    properties = torch.cuda.get_device_properties(index)
    most = getattr(properties, "shared_memory_per_block_optin", None)
    if most is not None:
        return int(most)
    # torch before 2.5 does not tell; by the table of compute capabilities.
    capability = properties.major, properties.minor
    if capability in ((8, 0), (8, 7)):
        return 163 * 1024
    return 227 * 1024 if capability[0] in (9, 10, 11) else 99 * 1024


@lru_cache(maxsize=1024)
def full_blocks(heads: int, units: int, index: int) -> int:
    """Of the heads of a group how many blocks take two, so that all blocks are done soonest.

    There are ``units`` such groups. A multiprocessor has room for one block, and takes the next
    where one is done; the full ones come first.
    """
    if units * heads > 16 * processors(index):
        return heads // HEADS
    shortest, found = math.inf, 0
    for full in range(heads // HEADS, -1, -1):
        free = [0.0] * processors(index)
        for _ in range(units * full):
            heapq.heapreplace(free, free[0] + LONGER)
        for _ in range(units * (heads - HEADS * full)):
            heapq.heapreplace(free, free[0] + 1.0)
        if max(free) < shortest + 1e-6:
            shortest, found = max(free), full
    return found


@lru_cache(maxsize=None)
def has_warpgroups(index: int) -> bool:
    """Whether a device has the products of ``kernels/wgmma.cuh``: compute capability 9.0 alone."""
    if index < 0:
        return False
    return compiler.architecture_of(torch.cuda.get_device_capability(index)) == "sm_90a"


@lru_cache(maxsize=1024)
def segments_of(chunks: int, blocks: int, index: int) -> tuple[int, int]:
    """Chunks of a segment of time and the segments: one where the heads fill the GPU."""
    wanted = 1
    if 10 * blocks < 9 * processors(index):
        wanted = min(chunks, max(1, 2 * processors(index) // blocks))
    length = -(-chunks // wanted)
    return length, -(-chunks // length)


def walks_along_time(chunks: int, blocks: int, index: int) -> bool:
    """Whether blocks that walk along all of time are done before segments by ``mma.sync`` are.

    A walk takes 1.5 us a chunk whatever else the GPU does, the segments 3.1 us a chunk that each
    multiprocessor works on, and 20 us for the two kernels ahead (one H200, ``notes-kernels.md``).
    """
    return chunks * (15 * processors(index) - 31 * blocks) <= 200 * processors(index)
