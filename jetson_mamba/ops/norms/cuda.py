"""The norms by the project's own CUDA kernels, in one pass over memory for each direction.

A row stays in the registers of the threads that share it, so it is read once whatever is computed
of it. The gradients of weight and bias are summed by each block over the rows that it goes through,
and then over the blocks, always in one order. ``docs/notes-kernels.md`` says more.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple, Sequence

import torch
from torch import Tensor

from jetson_mamba.dispatch.memo import Memo
from jetson_mamba.errors import Unavailable
from jetson_mamba.kernels import compiler
from jetson_mamba.kernels.tensors import (
    MOST_PLANS,
    NUMBERS,
    VECTOR_BYTES,
    address,
    index_of,
    processors,
)

from .contract import Case, Gradients, Implementation, Normed, Options

# Threads of a block where rows are short enough for several.
BLOCK_THREADS = 128
# Runs of neighbouring elements that a thread has of a row, and the most threads that share one:
# the first pair that a row fits is taken. Measured on an H100: docs/notes-kernels.md.
FORWARD_WAYS = ((4, 512),)
BACKWARD_WAYS = ((1, 640),)
# Of longer ones, what the registers hold: elements of a thread, by the most threads.
FORWARD_ELEMENTS = ((32, 512),)
BACKWARD_ELEMENTS = ((24, 256), (16, 512))
# Threads on each multiprocessor that go through the rows in the backward pass.
RESIDENT_THREADS = 768


def load(case: Case) -> Implementation:
    """The kernels for a case; raises :class:`Unavailable` where they do not apply."""
    if case.device.type != "cuda":
        raise Unavailable("the kernels run on CUDA devices only")
    for dtype in (case.dtype, case.weight_dtype):
        if dtype not in NUMBERS:
            raise Unavailable(f"the kernels are for float32, float16 and bfloat16, not {dtype}")
    kernels = _Kernels(case)
    return Implementation(kernels.forward, kernels.backward)


class Span(NamedTuple):
    """How threads share a row: ``norm.cuh`` says what the numbers are."""

    vector: int
    threads: int
    rounds: int
    rows: int


class Plan(NamedTuple):
    """What all calls share whose tensors differ in nothing but their addresses."""

    launch: compiler.Launch
    constants: tuple[int, ...]
    parts: int = 0
    sum_launch: compiler.Launch | None = None


def span_of(group: int, vector: int, rows: int, is_backward: bool, few_rows: bool) -> Span | None:
    """How a row of ``group`` elements is shared; None where it is longer than registers hold."""
    runs = group // vector
    limits = BACKWARD_ELEMENTS if is_backward else FORWARD_ELEMENTS
    ways = list(BACKWARD_WAYS if is_backward else FORWARD_WAYS)
    ways += [(elements // vector, threads) for elements, threads in limits]
    if few_rows:
        # As many threads as there can be, where there are too few rows to fill the device.
        ways.insert(0, (1, limits[-1][1]))
    for rounds, most in ways:
        threads = 32 * -(-runs // (32 * rounds))
        if threads <= most:
            together = max(1, min(BLOCK_THREADS // threads, rows))
            return Span(vector, threads, -(-runs // threads), together)
    return None


# Elements of the longest rows that the kernels take; of one at a time, registers hold fewer.
LONGEST_FORWARD = max(elements * threads for elements, threads in FORWARD_ELEMENTS)
LONGEST_BACKWARD = max(elements * threads for elements, threads in BACKWARD_ELEMENTS)
LONGEST_ODD = BACKWARD_ELEMENTS[0][0] * BACKWARD_ELEMENTS[0][1]


def takes(group: int, needs_backward: bool) -> bool:
    """Whether rows of this length are taken."""
    if not needs_backward:
        return group <= LONGEST_FORWARD
    return group <= (LONGEST_ODD if group % 2 else LONGEST_BACKWARD)


class _Kernels:
    """The kernels of one case, each loaded when it is first needed."""

    def __init__(self, case: Case) -> None:
        self._index = index_of(case.device)
        self._case = case
        self._processors = processors(self._index)
        self._plans: Memo[tuple[Any, ...], Plan] = Memo(MOST_PLANS)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        z: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        total_dtype: torch.dtype | None,
        out_dtype: torch.dtype,
        options: Options,
        with_rstd: bool,
    ) -> Normed:
        """As :class:`~.contract.Implementation` says."""
        if compiler.current_device() != self._index:
            with torch.cuda.device(self._index):
                return self.forward(
                    *(x, residual, z, weight, bias, total_dtype, out_dtype, options, with_rstd)
                )
        rows, dim = x.shape
        out = torch.empty((rows, dim), dtype=out_dtype, device=x.device)
        total = None
        if total_dtype is not None:
            total = torch.empty((rows, dim), dtype=total_dtype, device=x.device)
        rstd = None
        if with_rstd:
            shape = (dim // options.group, rows)
            rstd = torch.empty(shape, dtype=torch.float32, device=x.device)
        tensors = (x, residual, z, weight, bias, out, total)
        addresses = [0 if each is None else each.data_ptr() for each in tensors]
        plan = self._plan("forward", tensors, addresses, options)
        plan.launch(
            compiler.current_stream(self._index), *addresses, address(rstd), *plan.constants
        )
        return Normed(out, total, rstd)

    def backward(
        self,
        source: Tensor,
        z: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        dout: Tensor,
        dtotal: Tensor | None,
        residual_dtype: torch.dtype | None,
        options: Options,
        dz: Tensor | None,
    ) -> Gradients:
        """As :class:`~.contract.Implementation` says."""
        if compiler.current_device() != self._index:
            with torch.cuda.device(self._index):
                return self.backward(
                    *(source, z, weight, bias, dout, dtotal, residual_dtype, options, dz)
                )
        if options.group > LONGEST_ODD and not _fits(
            (source, z, weight, bias, dout, dtotal, dz), 2, options.group
        ):
            # Of memory of their own, they begin where more than one element is taken.
            found = self.backward(
                *(source.clone(), _cloned(z), weight.clone(), _cloned(bias), dout.clone()),
                *(_cloned(dtotal), residual_dtype, options, None),
            )
            return found if dz is None or found.z is None else found._replace(z=dz.copy_(found.z))
        rows, dim = source.shape
        dx = torch.empty((rows, dim), dtype=self._case.dtype, device=source.device)
        dresidual = None
        if residual_dtype is not None and residual_dtype != dx.dtype:
            dresidual = torch.empty((rows, dim), dtype=residual_dtype, device=source.device)
        if z is not None and dz is None:
            dz = torch.empty_like(dx)
        tensors = (source, z, weight, bias, dout, dtotal, dx, dresidual, dz)
        addresses = [0 if each is None else each.data_ptr() for each in tensors]
        plan = self._plan("backward", tensors, addresses, options)
        columns = dim if bias is None else 2 * dim
        partial = torch.empty(plan.parts * columns, dtype=torch.float32, device=source.device)
        dweight = torch.empty_like(weight)
        dbias = None if bias is None else torch.empty_like(bias)
        stream = compiler.current_stream(self._index)
        plan.launch(stream, *addresses, partial.data_ptr(), *plan.constants)
        assert plan.sum_launch is not None
        plan.sum_launch(
            stream,
            partial.data_ptr(),
            dweight.data_ptr(),
            address(dbias),
            *(plan.parts, columns, dim),
        )
        if residual_dtype is not None and dresidual is None:
            dresidual = dx
        return Gradients(dx, dresidual, dz, dweight, dbias)

    def _plan(
        self,
        kind: str,
        tensors: tuple[Tensor | None, ...],
        addresses: Sequence[int],
        options: Options,
    ) -> Plan:
        first = tensors[0]
        assert first is not None
        traits = [
            None if each is None else (each.dtype, each.stride(0), place % VECTOR_BYTES)
            for each, place in zip(tensors, addresses)
        ]
        key = (kind, options, first.shape, *traits)
        known = self._plans.find(key)
        if known is None:
            make = self._forward_plan if kind == "forward" else self._backward_plan
            return self._plans.put(key, make(tensors, options))
        known.used = self._plans.clock()
        return known.value

    def _forward_plan(self, tensors: tuple[Tensor | None, ...], options: Options) -> Plan:
        x, residual, z, weight, _, out, total = tensors
        assert x is not None and weight is not None
        span = self._span(tensors, options, is_backward=False)
        rows, dim = x.shape
        kernel = self._kernel(
            "norm_forward",
            forward_defines(
                span,
                options,
                *(_dtype(each, x) for each in (x, residual, total, out, weight)),
                adds=residual is not None,
                keeps=total is not None,
            ),
        )
        grid = (-(-rows // span.rows), dim // options.group, 1)
        strides = map(_row_stride, (x, residual, z, out, total))
        return Plan(
            compiler.Launch(kernel, grid, (span.threads, span.rows, 1), overlapping=True),
            (rows, options.group, *strides, _bits(options.eps)),
        )

    def _backward_plan(self, tensors: tuple[Tensor | None, ...], options: Options) -> Plan:
        source, z, weight, bias, dout, dtotal, dx, dresidual, dz = tensors
        assert source is not None and weight is not None
        span = self._span(tensors, options, is_backward=True)
        rows, dim = source.shape
        groups = dim // options.group
        kernel = self._kernel(
            "norm_backward",
            backward_defines(
                span,
                options,
                *(_dtype(each, source) for each in (source, dx, dresidual, dout, weight)),
                has_bias=bias is not None,
                has_dtotal=dtotal is not None,
                splits=dresidual is not None,
            ),
        )
        resident = self._processors * max(1, RESIDENT_THREADS // (span.threads * span.rows))
        blocks = min(-(-rows // span.rows), max(1, resident // groups))
        strides = map(_row_stride, (source, z, dout, dtotal, dx, dresidual, dz))
        columns = dim if bias is None else 2 * dim
        sum_kernel = self._kernel("norm_sum", (("WEIGHT", NUMBERS[weight.dtype]),))
        return Plan(
            compiler.Launch(kernel, (blocks, groups, 1), (span.threads, span.rows, 1)),
            (rows, options.group, *strides, _bits(options.eps)),
            blocks * span.rows,
            compiler.Launch(sum_kernel, (-(-columns // 32), 1, 1), (32, 32, 1), overlapping=True),
        )

    def _span(
        self, tensors: tuple[Tensor | None, ...], options: Options, is_backward: bool
    ) -> Span:
        rows = tensors[0].shape[0] if tensors[0] is not None else 0
        vector = VECTOR_BYTES // torch.empty((), dtype=self._case.dtype).element_size()
        while vector > 1 and not _fits(tensors, vector, options.group):
            vector //= 2
        few = rows * (-(-options.group // (32 * vector))) <= 4 * self._processors
        span = span_of(options.group, vector, rows, is_backward, few)
        assert span is not None, "the op asks for no longer rows"
        return span

    def _kernel(self, name: str, defines: tuple[tuple[str, str], ...]) -> compiler.Kernel:
        return compiler.load(f"{name}.cu", name, defines, self._index)


def forward_defines(
    span: Span,
    options: Options,
    dtype: torch.dtype,
    residual: torch.dtype,
    total: torch.dtype,
    out: torch.dtype,
    weight: torch.dtype,
    *,
    adds: bool,
    keeps: bool,
) -> tuple[tuple[str, str], ...]:
    """The definitions of a forward kernel, by the dtypes of its tensors."""
    return (
        *_types(INPUT=dtype, RESIDUAL=residual, TOTAL=total, OUTPUT=out, WEIGHT=weight),
        *_numbers(ADD=adds, KEEP=keeps),
        *_shared(span, options),
    )


def backward_defines(
    span: Span,
    options: Options,
    source: torch.dtype,
    dtype: torch.dtype,
    residual: torch.dtype,
    out: torch.dtype,
    weight: torch.dtype,
    *,
    has_bias: bool,
    has_dtotal: bool,
    splits: bool,
) -> tuple[tuple[str, str], ...]:
    """The definitions of a backward kernel; ``splits``: dresidual is another tensor than dx."""
    return (
        *_types(SOURCE=source, INPUT=dtype, RESIDUAL=residual, OUTPUT=out, WEIGHT=weight),
        *_numbers(BIAS=has_bias, DTOTAL=has_dtotal, DRESIDUAL=splits),
        *_shared(span, options),
    )


def _shared(span: Span, options: Options) -> tuple[tuple[str, str], ...]:
    vector, threads, rounds, rows = span
    return _numbers(
        RMS=options.is_rms_norm,
        GATE=options.gate,
        VECTOR=vector,
        THREADS=threads,
        ROUNDS=rounds,
        ROWS=rows,
    )


def _types(**dtypes: torch.dtype) -> tuple[tuple[str, str], ...]:
    return tuple((name, NUMBERS[dtype]) for name, dtype in dtypes.items())


def _numbers(**values: int) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(int(value))) for name, value in values.items())


def _fits(tensors: tuple[Tensor | None, ...], vector: int, group: int) -> bool:
    """Whether all rows and groups of them begin at whole vectors."""
    if group % vector:
        return False
    for tensor in tensors:
        if tensor is not None:
            size = tensor.element_size()
            step = min(VECTOR_BYTES, vector * size)
            if tensor.data_ptr() % step or _row_stride(tensor) * size % step:
                return False
    return True


def _dtype(tensor: Tensor | None, other: Tensor) -> torch.dtype:
    return other.dtype if tensor is None else tensor.dtype


def _row_stride(tensor: Tensor | None) -> int:
    """Elements from row to row; 0 for what has none."""
    return 0 if tensor is None or tensor.dim() < 2 else tensor.stride(0)


def _cloned(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


def _bits(value: float) -> int:
    number: int = struct.unpack("<i", struct.pack("<f", value))[0]
    return number
