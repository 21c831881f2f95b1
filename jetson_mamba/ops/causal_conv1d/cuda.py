"""The convolution by the project's own CUDA kernels, for widths 2 to 4 on any NVIDIA GPU.

Two pairs of kernels serve the two layouts that occur: time contiguous (Mamba-1) and channels
contiguous (Mamba-2). What is aligned to whole vectors takes the fast form of each; odd lengths,
slices and any other strides take an element at a time. ``docs/kernels.md`` says how they work.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jetson_mamba.kernels import compiler
from jetson_mamba.ops.backends import Unavailable

from .contract import Case, Gradients, Implementation

TYPES = {torch.float32: "float", torch.float16: "half_t", torch.bfloat16: "bfloat16_t"}
WIDTHS = (2, 3, 4)
# Of a grid's second and third dimension.
MAXIMUM_GRID = 65535
WARPS = 4


class Walk(NamedTuple):
    """How a channel-last kernel is cut: see ``causal_conv1d_*_channels.cu``."""

    vector: int
    unroll: int
    tiles: int
    # At most this many steps a tile; fewer where that would leave multiprocessors idle.
    steps: int
    stages: int = 1
    blocks: int = 1


# All by the bytes of an element; chosen by measurement on an H100, see docs/kernels.md.
BACKWARD_ROUNDS = {2: 8, 4: 16}
# Blocks resident on a multiprocessor, which bounds the registers of a thread.
FORWARD_BLOCKS, BACKWARD_BLOCKS = 16, 8
FORWARD_WALK = {2: Walk(2, 8, 4, 16, 1, 7), 4: Walk(2, 8, 4, 16, 1, 6)}
BACKWARD_WALK = {2: Walk(2, 4, 4, 128, 3, 7), 4: Walk(2, 4, 4, 128, 3, 6)}
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
        if dtype not in TYPES:
            raise Unavailable(f"the kernels are for float32, float16 and bfloat16, not {dtype}")
    kernels = _Kernels(case)
    return Implementation(kernels.forward, kernels.backward, kernels.update)


class _Kernels:
    """The kernels of one case, each loaded when it is first needed."""

    def __init__(self, case: Case) -> None:
        index = case.device.index
        self._index = torch.cuda.current_device() if index is None else index
        self._case = case
        self._processors = torch.cuda.get_device_properties(self._index).multi_processor_count
        self._size = torch.empty((), dtype=case.dtype).element_size()
        self._loaded: dict[tuple[object, ...], compiler.Kernel] = {}
        self._kernel("forward_channels", False, False, False, FORWARD_WALK[self._size])

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
        out = torch.empty_like(x)
        batch, dim, seqlen = x.shape
        stateful = initial_states is not None or final_states_out is not None
        states: tuple[int, ...] = ()
        if stateful:
            if initial_states is not None and final_states_out is not None:
                # One block reads the first while another writes the second.
                initial_states = initial_states.clone()
            states = (
                _address(initial_states),
                _address(final_states_out),
                *_strides(initial_states),
                *_strides(final_states_out),
            )
        weight, bias, seq_idx = weight.contiguous(), _packed(bias), _packed(seq_idx)
        pointers = (
            x.data_ptr(),
            weight.data_ptr(),
            _address(bias),
            _address(seq_idx),
            out.data_ptr(),
            batch,
        )
        if _time_contiguous(x, dim) and out.stride(2) == 1:
            aligned = _aligned(self._size, seqlen, (x, out))
            form = (int(aligned), FORWARD_BLOCKS)
            kernel = self._kernel("forward_time", silu, seq_idx is not None, stateful, form)
            blocks, warps = _cut(seqlen, 32 * (16 // self._size))
            kernel.launch(
                (blocks, dim, min(batch, MAXIMUM_GRID)),
                (32 * warps, 1, 1),
                0,
                *pointers,
                seqlen,
                x.stride(0),
                x.stride(1),
                out.stride(0),
                out.stride(1),
                *states,
            )
        else:
            walk = self._walk(FORWARD_WALK[self._size], GENERAL_FORWARD, (x, out))
            kernel = self._kernel("forward_channels", silu, seq_idx is not None, stateful, walk)
            columns, rows, steps = self._tile(x, walk)
            kernel.launch(
                (columns, rows, min(batch, MAXIMUM_GRID)),
                (32, walk.tiles, 1),
                0,
                *pointers,
                dim,
                seqlen,
                steps,
                *x.stride(),
                *out.stride(),
                *states,
            )
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
        batch, dim, seqlen = x.shape
        target = torch.empty_like(x) if dx is None else dx
        dinitial = None
        if return_dinitial_states:
            # Channels contiguous, as causal-conv1d lays its states out.
            dinitial = x.new_empty((batch, self._case.width - 1, dim)).transpose(1, 2)
        stateful = not (initial_states is None and dfinal_states is None and dinitial is None)
        states: tuple[int, ...] = ()
        if stateful:
            states = (
                _address(initial_states),
                _address(dfinal_states),
                _address(dinitial),
                *_strides(initial_states),
                *_strides(dfinal_states),
                *_strides(dinitial),
            )
        weight, bias, seq_idx = weight.contiguous(), _packed(bias), _packed(seq_idx)
        in_time = _time_contiguous(x, dim)
        # The kernels walk all three tensors alike; another layout is worth a copy.
        if in_time or x.stride(1) == 1:
            unit = 2 if in_time else 1
            if dout.stride(unit) != 1:
                dout = torch.empty_like(x).copy_(dout)
            written = target if target.stride(unit) == 1 else torch.empty_like(x)
            in_time = in_time and written.stride(2) == 1 and dout.stride(2) == 1
        else:
            written = target
        if in_time:
            row = 32 * (16 // self._size)
            rounds = batch * dim * seqlen // (row * self._processors * ENOUGH_WARPS)
            rounds = _even(-(-seqlen // row), min(max(rounds, 1), BACKWARD_ROUNDS[self._size]))
            blocks, warps = _cut(seqlen, rounds * row)
            grid = (blocks, dim, min(batch, MAXIMUM_GRID))
            parts = grid[0] * grid[2]
        else:
            walk = self._walk(BACKWARD_WALK[self._size], GENERAL_BACKWARD, (x, dout, written))
            columns, rows, steps = self._tile(x, walk)
            grid = (columns, rows, min(batch, MAXIMUM_GRID))
            parts = grid[1] * grid[2]
        partial = torch.empty(
            (parts, dim, self._case.width + 1), dtype=torch.float32, device=x.device
        )
        pointers = (
            x.data_ptr(),
            weight.data_ptr(),
            _address(bias),
            _address(seq_idx),
            dout.data_ptr(),
            written.data_ptr(),
            partial.data_ptr(),
            batch,
        )
        if in_time:
            aligned = _aligned(self._size, seqlen, (x, dout, written))
            form = (int(aligned), BACKWARD_BLOCKS)
            kernel = self._kernel("backward_time", silu, seq_idx is not None, stateful, form)
            kernel.launch(
                grid,
                (32 * warps, 1, 1),
                0,
                *pointers,
                seqlen,
                rounds,
                x.stride(0),
                x.stride(1),
                dout.stride(0),
                dout.stride(1),
                written.stride(0),
                written.stride(1),
                *states,
            )
        else:
            kernel = self._kernel("backward_channels", silu, seq_idx is not None, stateful, walk)
            kernel.launch(
                grid,
                (32, walk.tiles, 1),
                0,
                *pointers,
                dim,
                seqlen,
                steps,
                *x.stride(),
                *dout.stride(),
                *written.stride(),
                *states,
            )
        dweight = torch.empty_like(weight)
        dbias = None if bias is None else torch.empty_like(bias)
        sums = dim * (self._case.width + 1)
        self._kernel("sum", False, False, False, ()).launch(
            ((sums + 31) // 32, 1, 1),
            (32, 8, 1),
            0,
            partial.data_ptr(),
            dweight.data_ptr(),
            _address(dbias),
            parts,
            sums,
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
        out = torch.empty_like(x)
        batch, dim, seqlen = x.shape
        weight, bias = weight.contiguous(), _packed(bias)
        cache_seqlens, conv_state_indices = _packed(cache_seqlens), _packed(conv_state_indices)
        threads = 64
        self._kernel("update", silu, False, False, ()).launch(
            ((dim + threads - 1) // threads, min(batch, MAXIMUM_GRID), 1),
            (threads, 1, 1),
            0,
            x.data_ptr(),
            conv_state.data_ptr(),
            weight.data_ptr(),
            _address(bias),
            _address(cache_seqlens),
            _address(conv_state_indices),
            out.data_ptr(),
            batch,
            dim,
            seqlen,
            conv_state.shape[2],
            *x.stride(),
            *conv_state.stride(),
            *out.stride(),
        )
        return out

    def _walk(self, fast: Walk, general: Walk, tensors: tuple[Tensor, ...]) -> Walk:
        """``fast`` where every tensor is made of whole vectors of channels."""
        vector = fast.vector
        if tensors[0].shape[1] % vector:
            return general
        for tensor in tensors:
            batch, channel, step = tensor.stride()
            if channel != 1 or batch % vector or step % vector:
                return general
            if tensor.data_ptr() % (vector * self._size):
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
        key = (kind, silu, sequences, stateful, form)
        kernel = self._loaded.get(key)
        if kernel is None:
            name, defines = variant(self._case, kind, silu, sequences, stateful, form)
            kernel = compiler.load(f"{name}.cu", name, defines, self._index)
            self._loaded[key] = kernel
        return kernel


def variant(
    case: Case, kind: str, silu: bool, sequences: bool, stateful: bool, form: tuple[int, ...]
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The entry and the definitions of a kernel; ``form`` is its shape, by kind of kernel."""
    defines = [("WIDTH", str(case.width)), ("WEIGHT", TYPES[case.weight_dtype])]
    if kind != "sum":
        defines += [
            ("INPUT", TYPES[case.dtype]),
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


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _strides(tensor: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if tensor is None else tensor.stride()


def _packed(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()
