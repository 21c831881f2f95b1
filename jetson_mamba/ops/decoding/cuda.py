"""A decoding step by the project's own CUDA kernel, which goes through the states once.

``docs/notes-kernels.md`` says how it is cut. How a call is served is decided once, in a plan, for
calls whose tensors differ in nothing but their addresses.
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
    processors,
    strides_of,
)

from .contract import STEP, Case, Implementation, Step

INDICES = {torch.int32: "int", torch.int64: "long long"}
WARPS = 4
# Runs of states that a thread has of a row, at most.
MOST_ROUNDS = 8
# Rows that a thread loads before it uses the first, and how often, where warps are many; and the
# warps on each multiprocessor that are. Measured on an H100: docs/notes-kernels.md.
ROWS, TILES = 2, 4
MANY_WARPS = 16


def load(case: Case) -> Implementation:
    """The kernel for a case; raises :class:`Unavailable` where it does not apply."""
    if case.device.type != "cuda":
        raise Unavailable("the kernel runs on CUDA devices only")
    for dtype in (case.state_dtype, case.dtype, case.step_dtype, case.weight_dtype):
        if dtype not in NUMBERS:
            raise Unavailable(f"the kernel is for float32, float16 and bfloat16, not {dtype}")
    return _Kernel(case).update


class Form(NamedTuple):
    """How the kernel is specialised: ``state_update.cu`` says what the numbers are."""

    softplus: bool
    tied: bool
    vector: int
    lanes: int
    rounds: int
    rows: int
    tiles: int


class Plan(NamedTuple):
    """What all calls share whose tensors differ in nothing but their addresses."""

    launch: compiler.Launch
    constants: tuple[int, ...]


class _Kernel:
    """The kernel of one case, loaded in each form when that is first needed."""

    def __init__(self, case: Case) -> None:
        self._index = index_of(case.device)
        self._case = case
        self._processors = processors(self._index)
        self._plans: Memo[tuple[Any, ...], Plan | None] = Memo(MOST_PLANS)

    def update(self, step: Step) -> Tensor | None:
        """The output of a step, None where its strides or dtypes are none of the kernel's."""
        if compiler.current_device() != self._index:
            with torch.cuda.device(self._index):
                return self.update(step)
        key = tuple(map(_traits, step))
        known = self._plans.find(key)
        if known is None:
            plan = self._plans.put(key, self._plan(step))
        else:
            known.used = self._plans.clock()
            plan = known.value
        if plan is None:
            return None
        out = torch.empty(step.x.shape, dtype=step.x.dtype, device=step.x.device)
        plan.launch(
            compiler.current_stream(self._index),
            *map(address, STEP.tensors(step)),
            out.data_ptr(),
            *plan.constants,
        )
        return out

    def _plan(self, step: Step) -> Plan | None:
        narrow = (step.B, step.C, step.z)
        if any(each is not None and each.dtype != self._case.dtype for each in narrow):
            return None
        return plan_of(step, self._case, self._index, self._processors)


def plan_of(
    step: Step,
    case: Case,
    index: int,
    processors: int,
    *,
    logarithm: bool = False,
    early: bool = False,
) -> Plan | None:
    """The launch of a step; None where it is none of the kernel's.

    ``logarithm`` and ``early`` are as in ``state_update.cu``.
    """
    batch, nheads, dim = step.x.shape
    dstate = step.states.shape[3]
    skip = None if step.D is None else step.D.dtype
    bias = None if step.dt_bias is None else step.dt_bias.dtype
    form = form_of(step, processors)
    if form is None or nheads > MAXIMUM_GRID or not NUMBERS.keys() >= {skip, bias} - {None}:
        return None
    name, defines = variant(case, form, step.indices, skip, bias, logarithm, early)
    kernel = compiler.load(f"{name}.cu", name, defines, index)
    rows = WARPS * (32 // form.lanes) * form.rows * form.tiles
    grid = (-(-dim // rows), nheads, min(batch, MAXIMUM_GRID))
    sizes = (batch, dim, dstate, nheads // step.B.shape[1])
    strides = (
        *step.states.stride()[:-1],
        *step.x.stride(),
        *step.dt.stride(),
        *step.A.stride(),
        *step.B.stride(),
        *step.C.stride(),
        *strides_of(step.D, 2),
        *strides_of(step.z, 3),
        *strides_of(step.dt_bias, 2),
        *(nheads * dim, dim),
    )
    launch = compiler.Launch(kernel, grid, (32, WARPS, 1), overlapping=True)
    return Plan(launch, (*sizes, *strides))


def form_of(step: Step, processors: int) -> Form | None:
    """How a step is cut; None where rows of the state are no runs of memory, or too long."""
    batch, nheads, dim = step.x.shape
    dstate = step.states.shape[3]
    if dstate > 1 and step.states.stride(3) != 1:
        return None
    # What is expanded cannot be written, as torch will say.
    if dim * step.states.stride(2) >= 1 << 31:
        return None
    if any(step.states.stride(axis) == 0 < step.states.shape[axis] - 1 for axis in range(3)):
        return None
    vector = VECTOR_BYTES // step.states.element_size()
    while vector > 1 and not _fits(step, vector):
        vector //= 2
    lanes = 1
    while lanes < 32 and lanes * vector < dstate:
        lanes *= 2
    rounds = -(-dstate // (lanes * vector))
    if rounds > MOST_ROUNDS:
        return None
    tied = step.dt.stride(2) == 0 and not any(step.A.stride()[1:])
    tied = tied and (step.dt_bias is None or step.dt_bias.stride(1) == 0)
    rows = tiles = 1
    warps = batch * nheads * -(-dim // (32 // lanes))
    while rounds == 1 and warps // (2 * rows * tiles) >= MANY_WARPS * processors:
        # A thread for each row is all that there is.
        if 2 * rows * tiles > min(ROWS * TILES, lanes):
            break
        rows, tiles = (2 * rows, 1) if rows < ROWS else (rows, 2 * tiles)
    return Form(step.dt_softplus, tied, vector, lanes, rounds, rows, tiles)


def variant(
    case: Case,
    form: Form,
    indices: Tensor | None,
    skip_dtype: torch.dtype | None = None,
    bias_dtype: torch.dtype | None = None,
    logarithm: bool = False,
    early: bool = False,
) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The entry and the definitions of the kernel; D and dt_bias are of A's dtype by default."""
    defines = {
        "STATE": NUMBERS[case.state_dtype],
        "INPUT": NUMBERS[case.dtype],
        "STEP": NUMBERS[case.step_dtype],
        "WEIGHT": NUMBERS[case.weight_dtype],
        "SKIP": NUMBERS[skip_dtype or case.weight_dtype],
        "BIAS": NUMBERS[bias_dtype or case.weight_dtype],
        "INDEX": INDICES[torch.int32 if indices is None else indices.dtype],
        "WARPS": str(WARPS),
        "LOGARITHM": str(int(logarithm)),
        "EARLY": str(int(early)),
        **{name.upper(): str(int(value)) for name, value in form._asdict().items()},
    }
    return "state_update", tuple(defines.items())


def _fits(step: Step, vector: int) -> bool:
    """Whether all rows of states, B and C are whole vectors."""
    if step.states.shape[3] % vector:
        return False
    for tensor in (step.states, step.B, step.C):
        size = tensor.element_size()
        bytes_ = vector * size
        if bytes_ > VECTOR_BYTES or tensor.stride(-1) != 1 or tensor.data_ptr() % bytes_:
            return False
        if any(stride * size % bytes_ for stride in tensor.stride()[:-1]):
            return False
    return True


def _traits(field: Any) -> Any:
    """What a plan depends on of an argument."""
    if not isinstance(field, Tensor):
        return field
    return field.dtype, field.shape, field.stride(), field.data_ptr() % VECTOR_BYTES
