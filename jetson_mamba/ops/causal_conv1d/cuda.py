"""The convolution by the project's own CUDA kernels, for widths 2 to 4 on any NVIDIA GPU.

Two pairs of kernels serve the two layouts that occur: time contiguous (Mamba-1) and channels
contiguous (Mamba-2). What is aligned to whole vectors takes the fast form of each; odd lengths,
slices and any other strides take an element at a time (``docs/notes-kernels.md``).

Which kernel serves a call, and how its grid is cut, is decided once, in a *plan*, for calls whose
tensors differ in nothing but their addresses; a repeated call allocates and launches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import (
    MAXIMUM_GRID,
    MOST_PLANS,
    NUMBERS,
    VECTOR_BYTES,
    address,
    index_of,
    packed,
    processors,
    strides_of,
)

from .contract import Case, Gradients, Implementation

WIDTHS = (2, 3, 4)
WARPS = 4
UPDATE_THREADS = 64


class Walk(NamedTuple):
    """How a channel-last kernel is cut: see ``causal_conv1d_*_channels.cu``."""

    vector: int
    unroll: int
    tiles: int
    # At most this many steps a tile; fewer where that would leave multiprocessors idle.
    steps: int
    stages: int = 1
    blocks: int = 1


# Chosen by measurement on an H100, see docs/notes-kernels.md.
# Rounds of a warp along a row where time is contiguous, at most.
FORWARD_ROUNDS = {torch.float32: 2, torch.float16: 2, torch.bfloat16: 2}
BACKWARD_ROUNDS = {torch.float32: 8, torch.float16: 16, torch.bfloat16: 16}
# Blocks resident on a multiprocessor, which bounds the registers of a thread.
FORWARD_BLOCKS = {torch.float32: 12, torch.float16: 10, torch.bfloat16: 16}
BACKWARD_BLOCKS = 8
FORWARD_WALK = {
    torch.float32: Walk(2, 8, 4, 16, 1, 6),
    torch.float16: Walk(2, 8, 4, 16, 1, 7),
    torch.bfloat16: Walk(2, 8, 4, 16, 1, 7),
}
BACKWARD_WALK = {
    torch.float32: Walk(2, 4, 4, 128, 3, 6),
    torch.float16: Walk(2, 4, 4, 128, 2, 6),
    torch.bfloat16: Walk(2, 4, 4, 128, 2, 7),
}
# Any strides, any alignment.
GENERAL_FORWARD = Walk(1, 4, 4, 32)
GENERAL_BACKWARD = Walk(1, 4, 4, 128, 2)
# Warps on each multiprocessor, for whose sake a row is cut finer.
ENOUGH_WARPS = 16


def load(case: Case) -> Implementation:
    """The kernels for a case; raises :class:`Unavailable` where they do not apply."""
    if case.device.type != "cuda":
        raise Unavailable("the kernels run on CUDA devices only")
    if case.width not in WIDTHS:
        raise Unavailable(f"the kernels are for widths 2 to 4, not {case.width}")
    for dtype in (case.dtype, case.weight_dtype):
        if dtype not in NUMBERS:
            raise Unavailable(f"the kernels are for float32, float16 and bfloat16, not {dtype}")
    kernels = _Kernels(case)
    return Implementation(kernels.forward, kernels.backward, kernels.update)


class Plan(NamedTuple):
    """What all calls share whose tensors differ in nothing but their addresses.

    ``constants`` follow the addresses among a kernel's arguments. The other fields are the
    backward pass's: whether dx is written where it is wanted, the shape of what the blocks leave
    of the weight's and the bias's gradients, and the kernel that adds it.
    """

    launch: compiler.Launch
    constants: tuple[int, ...]
    writes_dx: bool = True
    partial_shape: tuple[int, ...] = ()
    sum_launch: compiler.Launch | None = None
    sum_constants: tuple[int, ...] = ()


class _Kernels:
    """The kernels of one case, each loaded when it is first needed."""

    def __init__(self, case: Case) -> None:
        self._index = index_of(case.device)
        self._case = case
        self._processors = processors(self._index)
        self._size = torch.empty((), dtype=case.dtype).element_size()
        self._plans: Memo[tuple[Any, ...], Plan] = Memo(MOST_PLANS)
        # A kernel that blocks take: where it is refused, so is the backend.
        self._kernel("forward_channels", True, False, False, FORWARD_WALK[case.dtype])

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        final_states_out: Tensor | None,
        silu: bool,
    ) -> Tensor:
        """As :class:`~.contract.Forward` says."""
        index = self._index
        if compiler.current_device() != index:
            with torch.cuda.device(index):
                return self.forward(
                    x, weight, bias, seq_idx, initial_states, final_states_out, silu
                )
        out = torch.empty_like(x)
        if initial_states is not None and final_states_out is not None:
            # One block reads the first while another writes the second.
            initial_states = initial_states.clone()
        weight, bias, seq_idx = weight.contiguous(), packed(bias), packed(seq_idx)
        addresses: tuple[int, ...] = (
            x.data_ptr(),
            weight.data_ptr(),
            address(bias),
            address(seq_idx),
            out.data_ptr(),
        )
        states: tuple[Tensor | None, ...] = ()
        if initial_states is not None or final_states_out is not None:
            states = (initial_states, final_states_out)
            addresses += (address(initial_states), address(final_states_out))
        key = (
            "forward",
            silu,
            (addresses[0] | addresses[4]) % VECTOR_BYTES,
            seq_idx is None,
            x.shape,
            x.stride(),
            *map(strides_of, states),
        )
        known = self._plans.find(key)
        if known is None:
            made = self._forward_plan(x, out, seq_idx is not None, states, silu)
            plan = self._plans.put(key, made)
        else:
            known.used = self._plans.clock()
            plan = known.value
        plan.launch(compiler.current_stream(index), *addresses, *plan.constants)
        return out

    def backward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        dout: Tensor,
        seq_idx: Tensor | None,
        initial_states: Tensor | None,
        dfinal_states: Tensor | None,
        dx: Tensor | None,
        return_dinitial_states: bool,
        silu: bool,
    ) -> Gradients:
        """As :class:`~.contract.Backward` says."""
        index = self._index
        if compiler.current_device() != index:
            with torch.cuda.device(index):
                return self.backward(
                    *(x, weight, bias, dout, seq_idx, initial_states, dfinal_states, dx),
                    *(return_dinitial_states, silu),
                )
        target = torch.empty_like(x) if dx is None else dx
        states: tuple[Tensor | None, ...] = ()
        dinitial = None
        if return_dinitial_states:
            # Channels contiguous, as causal-conv1d lays its states out.
            batch, dim, _ = x.shape
            dinitial = x.new_empty((batch, self._case.width - 1, dim)).transpose(1, 2)
        if not (initial_states is None and dfinal_states is None and dinitial is None):
            states = (initial_states, dfinal_states, dinitial)
        weight, bias, seq_idx = weight.contiguous(), packed(bias), packed(seq_idx)
        key = (
            "backward",
            silu,
            (x.data_ptr() | dout.data_ptr() | target.data_ptr()) % VECTOR_BYTES,
            seq_idx is None,
            x.shape,
            x.stride(),
            dout.stride(),
            target.stride(),
            *map(strides_of, states),
        )
        known = self._plans.find(key)
        if known is None:
            alike = self._walked_alike(x, dout)
            if alike is not dout:
                return self.backward(
                    *(x, weight, bias, alike, seq_idx, initial_states, dfinal_states, dx),
                    *(return_dinitial_states, silu),
                )
            made = self._backward_plan(x, dout, target, seq_idx is not None, states, silu)
            plan = self._plans.put(key, made)
        else:
            known.used = self._plans.clock()
            plan = known.value
        written = target if plan.writes_dx else torch.empty_like(x)
        partial = torch.empty(plan.partial_shape, dtype=torch.float32, device=x.device)
        dweight = torch.empty_like(weight)
        dbias = None if bias is None else torch.empty_like(bias)
        stream = compiler.current_stream(index)
        plan.launch(
            stream,
            x.data_ptr(),
            weight.data_ptr(),
            address(bias),
            address(seq_idx),
            dout.data_ptr(),
            written.data_ptr(),
            partial.data_ptr(),
            *map(address, states),
            *plan.constants,
        )
        assert plan.sum_launch is not None
        plan.sum_launch(
            stream,
            partial.data_ptr(),
            dweight.data_ptr(),
            address(dbias),
            *plan.sum_constants,
        )
        if written is not target:
            target.copy_(written)
        return target, dweight, dbias, dinitial

    def update(
        self,
        x: Tensor,
        conv_state: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        cache_seqlens: Tensor | None,
        conv_state_indices: Tensor | None,
        silu: bool,
    ) -> Tensor:
        """As :class:`~.contract.Update` says."""
        index = self._index
        if compiler.current_device() != index:
            with torch.cuda.device(index):
                return self.update(
                    x, conv_state, weight, bias, cache_seqlens, conv_state_indices, silu
                )
        out = torch.empty_like(x)
        weight, bias = weight.contiguous(), packed(bias)
        cache_seqlens, conv_state_indices = packed(cache_seqlens), packed(conv_state_indices)
        key = ("update", silu, x.shape, x.stride(), conv_state.shape, conv_state.stride())
        known = self._plans.find(key)
        if known is None:
            plan = self._plans.put(key, self._update_plan(x, conv_state, out, silu))
        else:
            known.used = self._plans.clock()
            plan = known.value
        plan.launch(
            compiler.current_stream(index),
            x.data_ptr(),
            conv_state.data_ptr(),
            weight.data_ptr(),
            address(bias),
            address(cache_seqlens),
            address(conv_state_indices),
            out.data_ptr(),
            *plan.constants,
        )
        return out

    def _forward_plan(
        self, x: Tensor, out: Tensor, sequences: bool, states: tuple[Tensor | None, ...], silu: bool
    ) -> Plan:
        batch, dim, seqlen = x.shape
        rest = [stride for state in states for stride in strides_of(state)]
        if _time_contiguous(x, dim) and out.stride(2) == 1:
            aligned = _aligned(self._size, seqlen, (x, out))
            form = (int(aligned), FORWARD_BLOCKS[x.dtype])
            kernel = self._kernel("forward_time", silu, sequences, bool(states), form)
            rounds, blocks, warps = self._rounds(x, FORWARD_ROUNDS)
            grid, block = (blocks, dim, min(batch, MAXIMUM_GRID)), (32 * warps, 1, 1)
            sizes = (batch, seqlen, rounds, *x.stride()[:2], *out.stride()[:2])
        else:
            fast = FORWARD_WALK[x.dtype]
            walk = self._walk(fast, GENERAL_FORWARD, fast.vector * self._size, (x, out))
            kernel = self._kernel("forward_channels", silu, sequences, bool(states), walk)
            columns, rows, steps = self._tile(x, walk)
            grid, block = (columns, rows, min(batch, MAXIMUM_GRID)), (32, walk.tiles, 1)
            sizes = (batch, dim, seqlen, steps, *x.stride(), *out.stride())
        return Plan(compiler.Launch(kernel, grid, block), (*sizes, *rest))

    def _walked_alike(self, x: Tensor, dout: Tensor) -> Tensor:
        """dout, in x's layout where the kernels walk both alike: another is worth a copy."""
        in_time = _time_contiguous(x, x.shape[1])
        if (in_time or x.stride(1) == 1) and dout.stride(2 if in_time else 1) != 1:
            return torch.empty_like(x).copy_(dout)
        return dout

    def _backward_plan(
        self,
        x: Tensor,
        dout: Tensor,
        target: Tensor,
        sequences: bool,
        states: tuple[Tensor | None, ...],
        silu: bool,
    ) -> Plan:
        batch, dim, seqlen = x.shape
        rest = [stride for state in states for stride in strides_of(state)]
        in_time = _time_contiguous(x, dim)
        written = target
        if (in_time or x.stride(1) == 1) and target.stride(2 if in_time else 1) != 1:
            written = torch.empty_like(x)
        if in_time and written.stride(2) == 1 and dout.stride(2) == 1:
            aligned = _aligned(self._size, seqlen, (x, dout, written))
            form = (int(aligned), BACKWARD_BLOCKS)
            kernel = self._kernel("backward_time", silu, sequences, bool(states), form)
            rounds, blocks, warps = self._rounds(x, BACKWARD_ROUNDS)
            grid, block = (blocks, dim, min(batch, MAXIMUM_GRID)), (32 * warps, 1, 1)
            parts = grid[0] * grid[2]
            strides = (*x.stride()[:2], *dout.stride()[:2], *written.stride()[:2])
            sizes = (batch, seqlen, rounds, *strides)
        else:
            fast, tensors = BACKWARD_WALK[x.dtype], (x, dout, written)
            walk = self._walk(fast, GENERAL_BACKWARD, VECTOR_BYTES, tensors)
            kernel = self._kernel("backward_channels", silu, sequences, bool(states), walk)
            columns, rows, steps = self._tile(x, walk)
            grid, block = (columns, rows, min(batch, MAXIMUM_GRID)), (32, walk.tiles, 1)
            parts = grid[1] * grid[2]
            strides = (*x.stride(), *dout.stride(), *written.stride())
            sizes = (batch, dim, seqlen, steps, *strides)
        sums = dim * (self._case.width + 1)
        sum_kernel = self._kernel("sum", False, False, False, ())
        return Plan(
            compiler.Launch(kernel, grid, block),
            (*sizes, *rest),
            written is target,
            (parts, dim, self._case.width + 1),
            compiler.Launch(sum_kernel, (-(-sums // 32), 1, 1), (32, 8, 1), overlapping=True),
            (parts, sums),
        )

    def _update_plan(self, x: Tensor, conv_state: Tensor, out: Tensor, silu: bool) -> Plan:
        batch, dim, seqlen = x.shape
        kernel = self._kernel("update", silu, False, False, ())
        grid = (-(-dim // UPDATE_THREADS), min(batch, MAXIMUM_GRID), 1)
        strides = (*x.stride(), *conv_state.stride(), *out.stride())
        return Plan(
            compiler.Launch(kernel, grid, (UPDATE_THREADS, 1, 1)),
            (batch, dim, seqlen, conv_state.shape[2], *strides),
        )

    def _rounds(self, x: Tensor, most: dict[torch.dtype, int]) -> tuple[int, int, int]:
        """Rounds of a warp along a row, blocks along it, and warps in each."""
        batch, dim, seqlen = x.shape
        row = 32 * (16 // self._size)
        rounds = batch * dim * seqlen // (row * self._processors * ENOUGH_WARPS)
        rounds = _even(-(-seqlen // row), min(max(rounds, 1), most[x.dtype]))
        return rounds, *_cut(seqlen, rounds * row)

    def _walk(self, fast: Walk, general: Walk, alignment: int, tensors: tuple[Tensor, ...]) -> Walk:
        """``fast`` where every tensor's rows of channels are whole vectors of so many bytes."""
        for tensor in tensors:
            batch, channel, step = tensor.stride()
            numbers = tensor.shape[1] | batch | step
            if channel != 1 or (tensor.data_ptr() | numbers * self._size) % alignment:
                return general
        return fast

    def _tile(self, x: Tensor, walk: Walk) -> tuple[int, int, int]:
        """Blocks of channels, blocks of time, and steps of a tile."""
        batch, dim, seqlen = x.shape
        columns = -(-dim // (32 * walk.vector))
        steps = batch * columns * seqlen // (self._processors * ENOUGH_WARPS)
        steps = min(max(steps, 2 * walk.unroll), walk.steps)
        steps = max(steps, -(-seqlen // (walk.tiles * MAXIMUM_GRID)))
        # A block's tiles end together where the row is cut into whole blocks.
        steps = _even(-(-seqlen // walk.tiles), steps)
        steps = -(-steps // walk.unroll) * walk.unroll
        return columns, -(-seqlen // (steps * walk.tiles)), steps

    def _kernel(
        self, kind: str, silu: bool, sequences: bool, stateful: bool, form: tuple[int, ...]
    ) -> compiler.Kernel:
        name, defines = variant(self._case, kind, silu, sequences, stateful, form)
        return compiler.load(f"{name}.cu", name, defines, self._index)


def variant(
    case: Case, kind: str, silu: bool, sequences: bool, stateful: bool, form: tuple[int, ...]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The entry and the definitions of a kernel; ``form`` is its shape, by kind of kernel."""
    defines = [("WIDTH", str(case.width)), ("WEIGHT", NUMBERS[case.weight_dtype])]
    if kind != "sum":
        defines += [
            ("INPUT", NUMBERS[case.dtype]),
            ("SILU", str(int(silu))),
            ("SEQ_IDX", str(int(sequences))),
            ("STATES", str(int(stateful))),
        ]
    names: tuple[str, ...] = ()
    if kind.endswith("time"):
        names = ("ALIGNED", "BLOCKS")
    elif kind.endswith("channels"):
        names = ("VECTOR", "UNROLL", "TILES", "STAGES", "BLOCKS")
        form = form[:3] + form[4:]
    values = dict(zip(names, form))
    if sequences or stateful or values.get("ALIGNED") == 0:
        # What these need beyond the common case must not spill.
        values["BLOCKS"] = 1
    defines += [(name, str(value)) for name, value in values.items()]
    return f"causal_conv1d_{kind}", tuple(defines)


def _time_contiguous(x: Tensor, dim: int) -> bool:
    return x.stride(2) == 1 and x.stride(1) != 1 and dim <= MAXIMUM_GRID


def _aligned(size: int, seqlen: int, tensors: tuple[Tensor, ...]) -> bool:
    """Whether every row of every tensor is whole vectors at multiples of 16 bytes."""
    if seqlen * size % 16:
        return False
    for tensor in tensors:
        batch, channel, _ = tensor.stride()
        if tensor.data_ptr() % 16 or batch * size % 16 or channel * size % 16:
            return False
    return True


def _cut(seqlen: int, span: int) -> tuple[int, int]:
    """Blocks along a row, and warps in each, where a warp takes ``span`` steps."""
    spans = -(-seqlen // span)
    warps = min(spans, WARPS)
    return -(-spans // warps), warps


def _even(length: int, most: int) -> int:
    """The size, ``most`` or less, of the fewest equal parts that make up ``length``."""
    return -(-length // -(-length // most))
